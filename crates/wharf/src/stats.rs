//! What a port counts.

/// A snapshot of a port's counters. Cheap: a few loads per lane, and no lock that a worker needs
/// on io_uring; on epoll also a look at what is ready, which is a system call per lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The concurrency value: how many workers may run at once.
    pub concurrency: usize,
    /// Packets handed out so far.
    pub packets: u64,
    /// Packets posted by the program so far.
    pub posted: u64,
    /// Packets that a worker took from another worker's lane.
    pub stolen: u64,
    /// Times a lane passed from a worker that blocked or left to one that waited.
    pub hand_overs: u64,
    /// Undeclared blocks that were noticed.
    pub blocks_noticed: u64,
    /// Workers running now. More than `concurrency` only while workers are back from a block and
    /// no worker has waited since.
    pub running: usize,
    /// Workers waiting now.
    pub waiting: usize,
    /// Packets ready to be taken now.
    pub queued: usize,
    /// Operations started whose last packet has not been taken.
    pub in_flight: u64,
    /// Receives that wait for a pooled buffer now.
    pub starving: usize,
    /// System calls made so far for operations: to start them, to make or try them, to wait for
    /// them, and to wake who waits. On io_uring these are the entries into its rings, and what is
    /// tried at once; on epoll each receive and send is one, and each registration of a socket. On
    /// Windows they are the waits, and what is tried at once. Opening, closing and setting options
    /// are not counted, nor is how workers without a place park and keep watch.
    pub kernel_entries: u64,
    /// Times a receive had to wait because every pooled buffer was in use.
    pub buffers_exhausted: u64,
}
