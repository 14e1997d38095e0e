//! A file for the workers of several lanes, which share nothing of it on the way.
//!
//! What a handle's lock guards, and the count of who holds it, move from processor to processor
//! when operations of one handle are started in several lanes at the same time: a read from the
//! page cache takes half as long again. Operations of a file need no order among each other. So its
//! handle has *branches*: in each lane but the one that began with it, a handle of its own, with
//! its own lock, list and count. What a worker starts goes to the branch of its lane, and the
//! packet brings a [`File`](crate::File) of that branch, from which the next operation goes there
//! without a detour.
//!
//! A branch borrows the descriptor of the *whole* handle, and holds it. The whole knows its
//! branches only weakly: one without operations and without a `File` of its own is gone. Appends,
//! which are done in order, go to the whole.

use std::sync::{
    Arc, Mutex, Weak,
    atomic::{AtomicU32, Ordering},
};

use crate::{block::HandleShared, sync::lock};

/// The branches of a handle.
#[derive(Debug)]
pub(crate) struct Branches<K: 'static, M: 'static> {
    /// The lane whose workers use the whole handle: the first in which something was started.
    home: AtomicU32,
    places: Box<[Place<K, M>]>,
}

/// Where a lane's branch is found. Its lock is taken by workers of that lane, if by any.
#[derive(Debug)]
#[repr(align(128))]
struct Place<K: 'static, M: 'static>(Mutex<Weak<HandleShared<K, M>>>);

const NOWHERE: u32 = u32::MAX;

impl<K, M> Branches<K, M> {
    /// For a handle of a port with so many lanes. None: it needs none.
    pub(crate) fn new(lanes: usize) -> Option<Box<Self>> {
        (lanes > 1).then(|| {
            let places = (0..lanes).map(|_| Place(Mutex::new(Weak::new()))).collect();
            Box::new(Self { home: AtomicU32::new(NOWHERE), places })
        })
    }

    /// Whether a lane uses the whole handle; it does from now on if no other does.
    #[inline]
    pub(crate) fn is_home(&self, lane: u16) -> bool {
        let lane = u32::from(lane);
        match self.home.load(Ordering::Relaxed) {
            NOWHERE => {
                let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
                let settled = self.home.compare_exchange(NOWHERE, lane, set, read);
                settled.is_ok() || settled == Err(lane)
            }
            home => home == lane,
        }
    }

    /// A lane's branch, which `make` makes if there is none.
    pub(crate) fn of(
        &self,
        lane: u16,
        make: impl FnOnce() -> Option<Arc<HandleShared<K, M>>>,
    ) -> Option<Arc<HandleShared<K, M>>> {
        let mut place = lock(&self.places.get(usize::from(lane))?.0);
        place.upgrade().or_else(|| make().inspect(|made| *place = Arc::downgrade(made)))
    }

    /// Those that there are.
    pub(crate) fn live(&self) -> impl Iterator<Item = Arc<HandleShared<K, M>>> {
        self.places.iter().filter_map(|place| lock(&place.0).upgrade())
    }
}
