//! Whether an event loop turns: it is asked, and answers. A loop that waits for events is woken by that, so an idle
//! one is not taken for one that is stuck.

use tokio::sync::{mpsc, oneshot};

/// The end of a worker's pulse for who asks.
#[derive(Debug)]
pub struct Pulse(mpsc::Sender<oneshot::Sender<()>>);

/// The end for the worker.
#[derive(Debug)]
pub struct Heart(mpsc::Receiver<oneshot::Sender<()>>);

/// So many, each with both ends.
pub fn pulses(count: usize) -> (Vec<Pulse>, Vec<Heart>) {
    let ends = |_| {
        let (pulse, heart) = mpsc::channel(1);
        (Pulse(pulse), Heart(heart))
    };
    (0..count).map(ends).unzip()
}

impl Heart {
    /// Answers for as long as the event loop turns.
    pub async fn beat(mut self) {
        while let Some(asked) = self.0.recv().await {
            // Whoever asked may have given up.
            let _ = asked.send(());
        }
    }
}

impl Pulse {
    /// Asks; the answer is whether all is well, which it also is when the worker has ended. There is none while it
    /// does not turn.
    pub(super) fn ask(&self) -> impl Future<Output = bool> + use<> {
        let (asked, answer) = oneshot::channel();
        let sent = self.0.try_send(asked);
        async move {
            match sent {
                // Dropped without an answer, it ended with its worker.
                Ok(()) => {
                    let _ = answer.await;
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => true,
                // It has not even taken the question before.
                Err(mpsc::error::TrySendError::Full(_)) => false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_turns_answers_and_one_that_does_not_is_silent() {
        let (pulses, mut hearts) = pulses(2);
        let stuck = hearts.pop();
        tokio::spawn(hearts.pop().expect("two hearts").beat());
        for round in 0..3 {
            assert_eq!(timeout(SHORT, pulses[0].ask()).await, Ok(true), "{round}");
            let answer = timeout(SHORT, pulses[1].ask()).await;
            assert!(!answer.unwrap_or(false), "{round}");
        }
        // It goes on after all.
        tokio::spawn(stuck.expect("a heart").beat());
        tokio::task::yield_now().await;
        assert_eq!(timeout(SHORT, pulses[1].ask()).await, Ok(true));
    }

    #[tokio::test]
    async fn a_worker_that_has_ended_is_well() {
        let (pulses, hearts) = pulses(1);
        let asked = pulses[0].ask();
        drop(hearts);
        assert!(asked.await);
        assert!(pulses[0].ask().await);
    }
}
