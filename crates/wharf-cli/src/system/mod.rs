//! What the program asks of its system beside what the library does.

cfg_select! {
    windows => {
        mod windows;
        pub(crate) use self::windows::*;
    }
    _ => {
        mod linux;
        pub(crate) use self::linux::*;
    }
}
