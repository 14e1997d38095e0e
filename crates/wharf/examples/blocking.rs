//! Handlers that block, with and without saying so.
//!
//!     cargo run --release -p wharf --example blocking
//!
//! One worker may run at a time here, and every handler sleeps. A worker that sleeps holds the
//! only running slot, unless it hands it over: at once when it says that it blocks, and after the
//! port has noticed when it does not. Either way there must be another worker to hand it to.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use wharf::{Port, Result};

const PACKETS: u32 = 32;
const SLEEP: Duration = Duration::from_millis(10);

fn main() -> Result<()> {
    println!("{PACKETS} handlers that sleep for {SLEEP:?} each, in one running slot:");
    println!("workers  handlers say so  hand-overs  noticed  time");
    measure(1, false)?;
    measure(PACKETS as usize, false)?;
    measure(PACKETS as usize, true)
}

fn measure(workers: usize, declared: bool) -> Result<()> {
    // The concurrency value is one: no more than one worker is to run.
    let port = Port::<(), ()>::new(1)?;
    let done = AtomicU32::new(0);
    let began = thread::scope(|scope| -> Result<Instant> {
        let running = scope.spawn(|| {
            port.workers(workers).run(|_packet| {
                if declared {
                    // Another worker takes a packet while this one sleeps.
                    port.blocking(|| thread::sleep(SLEEP));
                } else {
                    // The same, once the port has noticed that this one sleeps.
                    thread::sleep(SLEEP);
                }
                if done.fetch_add(1, Ordering::Relaxed) + 1 == PACKETS {
                    port.close();
                }
                Ok(())
            })
        });
        while port.stats().waiting < workers {
            thread::yield_now();
        }
        let began = Instant::now();
        for _ in 0..PACKETS {
            port.post(())?;
        }
        running.join().expect("it does not panic")?;
        Ok(began)
    })?;

    let (stats, say) = (port.stats(), if declared { "yes" } else { "no" });
    let (hand_overs, noticed, time) = (stats.hand_overs, stats.blocks_noticed, began.elapsed());
    println!("{workers:7}  {say:15}  {hand_overs:10}  {noticed:7}  {time:.0?}");
    Ok(())
}
