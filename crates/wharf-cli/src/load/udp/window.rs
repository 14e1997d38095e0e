//! Which of the numbered datagrams have come back: once, twice, or not at all.

/// How many of the last numbers are remembered, in bits: a datagram that comes back after so many
/// others have been sent is told from one that comes twice no more.
const SPAN: u64 = 1 << 22;

/// What a datagram is that comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The first of its number.
    First,
    /// Another of its number.
    Again,
    /// Its number is forgotten, or was never sent.
    Unknown,
}

/// See the module's page. Its memory does not grow.
#[derive(Debug)]
pub(super) struct Window {
    sent: u64,
    came: Vec<u64>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { sent: 0, came: vec![0; (SPAN / 64) as usize] }
    }

    /// How many numbers have been given out.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The next number to send.
    pub(super) fn number(&mut self) -> u64 {
        let number = self.sent;
        self.sent += 1;
        let (word, bit) = place(number);
        self.came[word] &= !bit;
        number
    }

    /// A datagram of this number has come back.
    pub(super) fn note(&mut self, number: u64) -> Seen {
        if number >= self.sent || self.sent - number > SPAN {
            return Seen::Unknown;
        }
        let (word, bit) = place(number);
        if self.came[word] & bit != 0 {
            return Seen::Again;
        }
        self.came[word] |= bit;
        Seen::First
    }
}

fn place(number: u64) -> (usize, u64) {
    let at = number % SPAN;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_new_once() {
        let mut window = Window::new();
        assert_eq!(window.note(0), Seen::Unknown);
        for number in 0..1000 {
            assert_eq!(window.number(), number);
        }
        for number in (0..1000).rev() {
            assert_eq!(window.note(number), Seen::First);
            assert_eq!(window.note(number), Seen::Again);
        }
        assert_eq!(window.note(1000), Seen::Unknown);
        assert_eq!(window.note(u64::MAX), Seen::Unknown);
    }

    #[test]
    fn old_numbers_are_forgotten() {
        let mut window = Window::new();
        for _ in 0..SPAN {
            window.number();
        }
        assert_eq!(window.note(0), Seen::First);
        // It takes the place of the first.
        assert_eq!(window.number(), SPAN);
        assert_eq!(window.note(0), Seen::Unknown);
        assert_eq!(window.note(1), Seen::First);
        assert_eq!(window.note(SPAN), Seen::First);
        assert_eq!(window.note(SPAN), Seen::Again);
    }
}
