//! Response bytes that HTTP/2 holds for one connection while its socket takes no more. Without a
//! limit, a client that opens its windows and reads nothing would make them grow by every call,
//! ended ones included.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Maximum unsent bytes of a connection; calls send no more beyond it.
const MAX_UNSENT_BYTES: usize = 4 << 20;

/// Unsent bytes of one connection; shared by its calls and its socket.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    bytes: Cell<usize>,
    /// The last write to the socket was pending.
    is_blocked: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Unsent {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Counts bytes that a call sends.
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// Records the result of a write.
    pub(crate) fn written(&self, written: &Poll<io::Result<usize>>) {
        self.is_blocked.set(written.is_pending());
        if let Poll::Ready(Ok(bytes)) = written {
            self.set(self.bytes.get().saturating_sub(*bytes));
        }
    }

    /// Resets the count when HTTP/2 has nothing more to write; it drops the bytes of cancelled
    /// calls.
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
    fn calls_wait_while_the_socket_is_blocked() {
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
        // The calls of these bytes have been cancelled.
        unsent.settle();
        assert!(has_room());
        assert!(unsent.waiting.borrow().is_empty());
    }
}
