//! Handles as the system knows them: to set options, and to hand an accepted connection on.

use crate::{
    datagram::Datagram,
    file::File,
    tcp::{Incoming, Listener, Stream},
    udp::UdpSocket,
};

cfg_select! {
    windows => {
        use std::os::windows::io::{AsHandle, AsSocket, BorrowedHandle, BorrowedSocket};

        macro_rules! lend_socket {
            ($(#[$doc:meta])* $handle:ident<$($of:ident),*>, $($field:ident).*) => {
                $(#[$doc])*
                impl<$($of),*> AsSocket for $handle<$($of),*> {
                    fn as_socket(&self) -> BorrowedSocket<'_> {
                        self.$($field).*.as_socket()
                    }
                }
            };
        }

        macro_rules! lend_file {
            ($(#[$doc:meta])* $handle:ident<$($of:ident),*>, $($field:ident).*) => {
                $(#[$doc])*
                impl<$($of),*> AsHandle for $handle<$($of),*> {
                    fn as_handle(&self) -> BorrowedHandle<'_> {
                        self.$($field).*.as_handle()
                    }
                }
            };
        }
    }
    _ => {
        use std::os::fd::{AsFd, BorrowedFd};

        macro_rules! lend_socket {
            ($(#[$doc:meta])* $handle:ident<$($of:ident),*>, $($field:ident).*) => {
                $(#[$doc])*
                impl<$($of),*> AsFd for $handle<$($of),*> {
                    fn as_fd(&self) -> BorrowedFd<'_> {
                        self.$($field).*.as_fd()
                    }
                }
            };
        }
        use lend_socket as lend_file;

        impl AsFd for crate::raw::Handle {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.fd.as_fd()
            }
        }
    }
}

lend_socket!(
    /// For socket options, through `socket2::SockRef`. Receiving or sending on the descriptor
    /// directly gets in the way of the operations in flight. (On Windows, where pipes are no
    /// sockets, it panics for one.)
    Stream<K, M>, shared.raw.fd
);
lend_socket!(
    /// For socket options, through `socket2::SockRef`.
    Listener<K, M>, shared.raw.fd
);
lend_socket!(
    /// For socket options, through `socket2::SockRef`.
    Datagram<K, M>, shared.raw.fd
);
lend_socket!(
    /// For other options, through `socket2::SockRef`. Receiving or sending on the descriptor
    /// directly gets in the way of the operations in flight.
    UdpSocket<K, M>, shared.raw.fd
);
lend_socket!(
    Incoming<K, M>, fd
);
lend_file!(
    /// For what this type does not offer. Operations in flight do not mind.
    File<K, M>, shared.raw.fd
);
