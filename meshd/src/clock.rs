//! The only place where meshd reads a clock.

use meshd_model::{Boot, Now, Wall};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the event loop knows of time: the clocks, and one alarm.
pub trait Clock: Send {
    /// Both clocks, now.
    fn now(&self) -> Now;
    /// When the alarm shall ring next; replaces what was set before.
    fn set_alarm(&mut self, at: Option<Boot>) -> io::Result<()>;
    /// Comes back once the alarm's time has come; never while none is set.
    fn alarm(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// Both system clocks, now.
#[must_use]
pub fn now() -> Now {
    Now {
        boot: Boot(read(ClockId::CLOCK_BOOTTIME)),
        wall: Wall(read(ClockId::CLOCK_REALTIME)),
    }
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("CLOCK_BOOTTIME and CLOCK_REALTIME exist on every Linux");
    u64::try_from(time.tv_sec())
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
}

/// The system's clocks; the alarm is a timerfd, which also counts the time that a machine was suspended.
#[derive(Debug)]
pub struct SystemClock {
    timer: AsyncFd<Timer>,
    set: Option<Boot>,
}

#[derive(Debug)]
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl SystemClock {
    /// Must be called within a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(TimerClock::CLOCK_BOOTTIME, flags)?;
        Ok(Self {
            timer: register(Timer(timer))?,
            set: None,
        })
    }
}

#[allow(unsafe_code)]
fn register(timer: Timer) -> io::Result<AsyncFd<Timer>> {
    // SAFETY: `Timer` owns its descriptor, gives the same one for as long as it lives, and never closes it before.
    let registered = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
    registered.map_err(io::Error::from)
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        now()
    }

    fn set_alarm(&mut self, at: Option<Boot>) -> io::Result<()> {
        if self.set == at {
            return Ok(());
        }
        let timer = &self.timer.get_ref().0;
        match at {
            None => timer.unset()?,
            Some(at) => {
                // Zero would disarm it; a time that has passed rings at once.
                let at = std::time::Duration::from_nanos(at.0.max(1));
                timer.set(
                    Expiration::OneShot(TimeSpec::from_duration(at)),
                    TimerSetTimeFlags::TFD_TIMER_ABSTIME,
                )?;
            }
        }
        self.set = at;
        Ok(())
    }

    async fn alarm(&self) -> io::Result<()> {
        // The expiry is left unread: the descriptor stays readable until the alarm is set anew, so that a caller
        // whose wait was cancelled in the last moment is told again.
        loop {
            let mut guard = self.timer.readable().await?;
            match self.set {
                Some(at) if now().boot >= at => return Ok(()),
                _ => guard.clear_ready(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn the_alarm_rings_when_its_time_has_come_and_not_before() {
        let mut clock = SystemClock::new().unwrap();
        let start = clock.now();
        clock
            .set_alarm(Some(start.boot + Duration::from_millis(30)))
            .unwrap();
        clock.alarm().await.unwrap();
        let waited = clock.now().boot.since(start.boot);
        assert!(waited >= Duration::from_millis(30), "{waited:?}");
        // Set anew, it rings again; unset, it does not.
        clock.set_alarm(Some(start.boot)).unwrap();
        clock.alarm().await.unwrap();
        clock.set_alarm(None).unwrap();
        let rang = tokio::time::timeout(Duration::from_millis(50), clock.alarm()).await;
        assert!(rang.is_err());
    }
}
