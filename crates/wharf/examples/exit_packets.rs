//! Ending worker threads with exit packets: a value that means "end", posted once per worker.
//!
//!     cargo run --release -p wharf --example exit_packets
//!
//! Packets leave the port in the order in which they were posted, so the work that stands before
//! the exit packets is taken first; and a worker that has taken one waits no more, so that each
//! gets exactly one.

use std::thread;

use wharf::{Op, Port, Result, Wait};

/// What is posted.
#[derive(Debug)]
enum Task {
    /// Count the prime numbers in the thousand that begins here.
    Count(u64),
    /// End.
    Exit,
}

const WORKERS: usize = 4;
const TASKS: u64 = 200;

fn main() -> Result<()> {
    // No sockets: a port with nothing but posted values is a work queue.
    let port = Port::<(), Task>::new(2)?;

    let counts = thread::scope(|scope| -> Result<Vec<_>> {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| work(&port))).collect();
        for task in 0..TASKS {
            port.post(Task::Count(task * 1000))?;
        }
        for _ in 0..WORKERS {
            port.post(Task::Exit)?;
        }
        Ok(workers.into_iter().map(|worker| worker.join().expect("it does not panic")).collect())
    })?;

    // Two may run at once, and the newest waiter goes first: others may find nothing left to do.
    for (worker, (tasks, _)) in counts.iter().enumerate() {
        println!("worker {worker} took {tasks} tasks and one exit packet");
    }
    let tasks: u64 = counts.iter().map(|(tasks, _)| tasks).sum();
    let primes: usize = counts.iter().map(|(_, primes)| primes).sum();
    println!("{tasks} tasks done: {primes} primes below {}", TASKS * 1000);
    println!("left in the port: {} packets", port.stats().queued);
    Ok(())
}

/// A worker: returns how many tasks it had, and how many primes were in them.
fn work(port: &Port<(), Task>) -> (u64, usize) {
    let (mut tasks, mut primes) = (0, 0);
    loop {
        match port.wait() {
            Wait::Packet(packet) => match packet.op {
                Op::Posted(Task::Count(from)) => {
                    tasks += 1;
                    primes += (from..from + 1000).filter(|&number| is_prime(number)).count();
                }
                // The worker's place goes to one that waits, when this thread ends.
                Op::Posted(Task::Exit) => return (tasks, primes),
                _ => {}
            },
            Wait::TimedOut => {}
            // Somebody closed the port, or it broke: no more packets will come.
            Wait::Closed | Wait::Broken(_) => return (tasks, primes),
        }
    }
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|n| n * n <= number).all(|n| !number.is_multiple_of(n))
}
