//! Records an agent that is driven by a script, and replays it.

mod script;

use meshd::record::{
    Options, Record, ReplayError, Segment, Tail, flush_all, read_segment, replay, replay_path, segments,
};
use meshd_core::{Action, Event, KubeEvent};
use meshd_model::PublicKey;
use script::{config, start};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn key() -> PublicKey {
    PublicKey([200; 32])
}

/// A recording of one segment.
fn recorded() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("recording");
    let mut script = start(Options::new(&dir), key());
    script.life();
    script.add_and_delete("a");
    drop(script);
    let (_, path) = segments(&dir).unwrap().pop().unwrap();
    (folder, path)
}

fn counts(segment: &Segment) -> [usize; 3] {
    let count = |which: fn(&Record) -> bool| segment.records.iter().filter(|r| which(r)).count();
    [
        count(|r| matches!(r, Record::Event { .. } | Record::Observed { .. })),
        count(|r| matches!(r, Record::Timeout { .. })),
        count(|r| matches!(r, Record::Action(_))),
    ]
}

#[test]
fn a_replay_takes_the_same_decisions() {
    let (_folder, path) = recorded();
    let segment = read_segment(&path).unwrap();
    let report = replay(&segment).unwrap();
    let [events, timeouts, actions] = counts(&segment);
    assert!(events > 20 && timeouts > 0 && actions > 20, "{report}");
    assert_eq!(
        [report.events, report.timeouts, report.actions],
        [events, timeouts, actions]
    );
    assert_eq!((report.tail, report.lost_before), (Tail::Whole, 0));
    assert_eq!(segment.header.config, config(key()));
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(
        std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
        0o700
    );
}

#[test]
fn another_decision_is_a_divergence_that_names_the_record() {
    let (_folder, path) = recorded();
    let whole = read_segment(&path).unwrap();
    let is_action = |r: &Record| matches!(r, Record::Action(Action::Kernel(_)));
    let at = whole.records.iter().rposition(is_action).unwrap();

    // One that was recorded otherwise, one that the agent wants and was not, one that it does not want.
    let mut changed = whole.clone();
    if let Record::Action(Action::Kernel(action)) = &mut changed.records[at] {
        action.id.generation += 1;
    }
    let diverged = replay(&changed).unwrap_err();
    assert_eq!(diverged.record, at);
    assert!(
        diverged.recorded.is_some() && diverged.replayed.is_some() && diverged.cause.is_some(),
        "{diverged}"
    );

    let mut missing = whole.clone();
    missing.records.remove(at);
    let diverged = replay(&missing).unwrap_err();
    assert!(diverged.replayed.is_some(), "{diverged}");

    let mut added = whole.clone();
    let action = added.records[at].clone();
    added.records.push(action);
    let diverged = replay(&added).unwrap_err();
    assert_eq!((diverged.record, diverged.replayed), (whole.records.len(), None));
}

#[test]
fn a_tail_that_was_torn_by_a_kill_is_ignored() {
    let (_folder, path) = recorded();
    let whole = read_segment(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let mut torn = 0;
    let cuts = (bytes.len() - 2_000..bytes.len()).step_by(29);
    for cut in cuts {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let segment = read_segment(&path).unwrap();
        assert!(segment.records.len() < whole.records.len());
        assert_eq!(segment.records, whole.records[..segment.records.len()]);
        assert!(!matches!(segment.tail, Tail::Damaged { .. }));
        torn += usize::from(segment.tail != Tail::Whole);
        replay(&segment).unwrap();
    }
    assert!(torn > 60, "{torn}");
    // Nothing is left of the snapshot: an error, and not an empty success.
    for cut in [0, 5, 13, 40] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        read_segment(&path).unwrap_err();
    }
}

#[test]
fn what_was_damaged_is_told_and_what_came_before_is_replayed() {
    let (_folder, path) = recorded();
    let whole = read_segment(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 3_000;
    bytes[at] ^= 0x40;
    std::fs::write(&path, &bytes).unwrap();
    let segment = read_segment(&path).unwrap();
    assert!(
        matches!(segment.tail, Tail::Damaged { offset } if offset <= at),
        "{:?}",
        segment.tail
    );
    assert!(segment.records.len() > 10 && segment.records.len() < whole.records.len());
    assert_eq!(segment.records, whole.records[..segment.records.len()]);
    assert!(replay(&segment).unwrap().to_string().contains("damaged"));
}

#[test]
fn another_format_is_refused_by_name() {
    let (_folder, path) = recorded();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 99;
    std::fs::write(&path, &bytes).unwrap();
    assert!(
        read_segment(&path)
            .unwrap_err()
            .to_string()
            .contains("version 99")
    );
    bytes[0] = b'x';
    std::fs::write(&path, &bytes).unwrap();
    assert!(
        read_segment(&path)
            .unwrap_err()
            .to_string()
            .contains("no segment")
    );
}

#[test]
fn segments_rotate_the_oldest_goes_and_each_replays_alone_and_with_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 30_000,
        total_bytes: 200_000,
        ..Options::new(folder.path())
    };
    let total_bytes = options.total_bytes;
    let mut script = start(options, key());
    script.life();
    for n in 0..200 {
        script.add_and_delete(&format!("pod-{n}"));
        // The writer asks for a new segment when it has seen that the old one is full.
        if n % 5 == 0 {
            flush_all(Duration::from_secs(10));
        }
    }
    drop(script);
    let left = segments(folder.path()).unwrap();
    assert!(left[0].0 > 1, "none was dropped: {left:?}");
    let bytes: u64 = left
        .iter()
        .map(|(_, path)| std::fs::metadata(path).unwrap().len())
        .sum();
    assert!(
        bytes <= total_bytes + 60_000 && left.len() > 2,
        "{bytes} bytes in {}",
        left.len()
    );
    let reports = replay_path(folder.path()).unwrap();
    assert_eq!(reports.len(), left.len());
    assert!(
        reports
            .iter()
            .all(|report| report.lost_before == 0 && report.events > 0)
    );

    // A segment that does not begin with what the one before ended with is found out.
    let (first, third) = (&left[0].1, &left[2].1);
    std::fs::copy(first, third).unwrap();
    assert!(matches!(replay_path(folder.path()), Err(ReplayError::Discontinuous(path)) if path == *third));
}

#[test]
fn a_loss_is_recorded_and_the_next_segment_replays() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("recording");
    // A file is in the way of the folder: nothing can be written.
    std::fs::write(&dir, "").unwrap();
    let options = Options {
        retry: Duration::from_millis(20),
        ..Options::new(&dir)
    };
    let mut script = start(options, key());
    script.life();
    let deadline = Instant::now() + Duration::from_secs(10);
    while script.recorder.lost() == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(script.recorder.lost() > 0);
    std::fs::remove_file(&dir).unwrap();
    let mut n = 0;
    while !dir.exists() && Instant::now() < deadline {
        n += 1;
        script.add_and_delete(&format!("pod-{n}"));
        std::thread::sleep(Duration::from_millis(5));
    }
    script.add_and_delete("last");
    let lost = script.recorder.lost();
    drop(script);
    let reports = replay_path(&dir).unwrap();
    assert_eq!(reports.iter().map(|r| r.lost_before).sum::<u64>(), lost);
    assert!(
        reports[0].lost_before > 0 && reports.iter().any(|r| r.events > 0),
        "{reports:?}"
    );
}

#[test]
fn a_full_queue_loses_records_and_never_blocks() {
    let folder = tempfile::tempdir().unwrap();
    // No room at all: each record is lost, and each turn begins anew.
    let options = Options {
        queue_bytes: 0,
        ..Options::new(folder.path())
    };
    let mut script = start(options, key());
    script.life();
    let lost = script.recorder.lost();
    drop(script);
    let reports = replay_path(folder.path()).unwrap();
    assert!(lost > 50 && reports.iter().all(|r| r.events == 0), "{lost}");
    assert!(reports.iter().skip(1).all(|r| r.lost_before > 0));
}

#[test]
fn a_record_is_in_its_file_at_once_for_a_kill_to_find() {
    let folder = tempfile::tempdir().unwrap();
    let mut script = start(Options::new(folder.path()), key());
    script.life();
    script.tell(Event::Kube(KubeEvent::Unreachable {
        message: "the last words".into(),
    }));
    let deadline = Instant::now() + Duration::from_secs(5);
    // Neither dropped nor flushed: what a kill -9 would leave.
    while !contains(folder.path(), b"the last words") {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(script);
}

#[test]
fn no_form_of_the_private_key_is_in_a_recording() {
    let folder = tempfile::tempdir().unwrap();
    let key = meshd::key::load_or_generate(&folder.path().join("state")).unwrap();
    let dir = folder.path().join("recording");
    let mut script = start(Options::new(&dir), key.public);
    script.life();
    script.add_and_delete("a");
    drop(script);
    let secret = key.secret().as_slice();
    let file = std::fs::read_to_string(folder.path().join("state").join(meshd::key::FILE)).unwrap();
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    for planted in [
        secret,
        file.trim().as_bytes(),
        hex.as_bytes(),
        hex.to_uppercase().as_bytes(),
    ] {
        assert!(!contains(&dir, planted));
    }
    // The search would have found it: the public key is there.
    assert!(contains(&dir, key.public.to_string().as_bytes()));
}

fn contains(dir: &Path, needle: &[u8]) -> bool {
    let found = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(needle.len()).any(|w| w == needle)
    };
    segments(dir).unwrap().iter().any(|(_, path)| found(path))
}
