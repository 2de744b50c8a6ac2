//! Bytes of responses that HTTP/2 holds for one connection because its socket
//! takes no more. A client that opens its windows and reads nothing would have
//! them grow by what every call may send, also by calls that have ended.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// With so many bytes unsent no call of the connection sends more.
const MAX_UNSENT_BYTES: usize = 4 << 20;

/// The bytes of one connection; shared by its calls and its socket.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    bytes: Cell<usize>,
    /// The socket took less than it was given.
    is_blocked: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Unsent {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// A call sends so many bytes.
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// What became of an attempt to write.
    pub(crate) fn written(&self, written: &Poll<io::Result<usize>>) {
        self.is_blocked.set(written.is_pending());
        if let Poll::Ready(Ok(bytes)) = written {
            self.set(self.bytes.get().saturating_sub(*bytes));
        }
    }

    /// HTTP/2 has nothing more to write. Bytes of calls that were cancelled
    /// are gone with them.
    pub(crate) fn settle(&self) {
        if !self.is_blocked.get() && self.bytes.get() > 0 {
            self.set(0);
        }
    }

    fn set(&self, bytes: usize) {
        self.bytes.set(bytes);
        if bytes < MAX_UNSENT_BYTES {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Waits until a call may send more.
    pub(crate) async fn room(&self) {
        poll_fn(|cx| {
            if self.bytes.get() < MAX_UNSENT_BYTES {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Context;

    #[test]
    fn calls_wait_while_the_socket_takes_nothing() {
        let unsent = Unsent::default();
        let has_room = || {
            let mut room = std::pin::pin!(unsent.room());
            room.as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        };
        unsent.add(MAX_UNSENT_BYTES);
        unsent.written(&Poll::Pending);
        unsent.settle();
        assert!(!has_room());
        unsent.written(&Poll::Ready(Ok(1)));
        assert!(has_room());
        unsent.add(MAX_UNSENT_BYTES);
        assert!(!has_room());
        // The calls whose bytes these were are gone.
        unsent.settle();
        assert!(has_room());
        assert!(unsent.waiting.borrow().is_empty());
    }
}
