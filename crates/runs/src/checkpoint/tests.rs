use super::*;
use crate::folder::{ResumeFrom, Start};
use std::fs::{File, OpenOptions};
use std::io::Write;

fn open(path: &Path) -> RunFolder {
    RunFolder::open(path, false, &ResumeFrom::Automatic).unwrap()
}

fn checkpoint(run: &RunFolder, step: u64) -> Checkpoint {
    let writer = CheckpointWriter::begin(run, step).unwrap();
    fs::create_dir(writer.folder().join("rank0")).unwrap();
    fs::write(writer.folder().join("model.safetensors"), format!("weights {step}")).unwrap();
    fs::write(writer.folder().join("rank0/cursor.json"), "{}").unwrap();
    writer.finish().unwrap()
}

fn steps(path: &Path) -> Vec<u64> {
    list(path).unwrap().complete.iter().map(|c| c.step).collect()
}

#[test]
fn a_finished_checkpoint_is_complete_and_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    let written = checkpoint(&run, 10);
    assert_eq!(
        list(folder.path()).unwrap(),
        Listing { complete: vec![written.clone()], ..Listing::default() }
    );
    assert_eq!(written.bytes, 12);
    written.verify().unwrap();
}

#[test]
fn the_manifest_has_the_hashes_that_sha256sum_prints() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    let writer = CheckpointWriter::begin(&run, 1).unwrap();
    fs::write(writer.folder().join("a"), "abc").unwrap();
    let path = writer.finish().unwrap().path;
    let text = fs::read_to_string(path.join(MANIFEST)).unwrap();
    // FIPS 180-2, appendix B.1.
    assert!(text.contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "{text}");
}

#[test]
fn a_checkpoint_abandoned_in_the_middle_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    let writer = CheckpointWriter::begin(&run, 10).unwrap();
    fs::write(writer.folder().join("model.safetensors"), "half").unwrap();
    drop(writer);
    assert_eq!(list(folder.path()).unwrap(), Listing::default());
}

#[test]
fn a_killed_write_is_listed_as_partial_and_cleared_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("checkpoint-7.partial")).unwrap();
    assert_eq!(list(folder.path()).unwrap().partial.len(), 1);
    let run = open(folder.path());
    assert_eq!(run.start(), &Start::Fresh);
    assert_eq!(list(folder.path()).unwrap(), Listing::default());
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    let written = checkpoint(&run, 10);
    fs::remove_file(written.path.join("rank0/cursor.json")).unwrap();
    assert_eq!(list(folder.path()).unwrap().damaged[0].reason, "rank0/cursor.json is missing");
}

#[test]
fn a_short_file_is_named_with_both_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    let written = checkpoint(&run, 10);
    fs::write(written.path.join("model.safetensors"), "weight").unwrap();
    let damaged = &list(folder.path()).unwrap().damaged[0];
    assert_eq!(damaged.reason, "model.safetensors has 6 bytes instead of 10");
}

#[test]
fn a_flipped_bit_is_found_by_verify_and_passed_by_on_resume() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    checkpoint(&run, 10);
    let newest = checkpoint(&run, 20);
    fs::write(newest.path.join("model.safetensors"), "weights 2!").unwrap();
    assert!(newest.verify().unwrap_err().to_string().contains("model.safetensors"));
    let (good, passed_by) = last_good(folder.path()).unwrap();
    assert_eq!(good.unwrap().step, 10);
    assert_eq!(passed_by[0].step, 20);
}

#[test]
fn a_folder_without_a_manifest_is_damaged_whatever_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("checkpoint-500")).unwrap();
    fs::write(folder.path().join("checkpoint-500/optimizer.pt"), "x").unwrap();
    let listing = list(folder.path()).unwrap();
    assert!(listing.complete.is_empty());
    assert!(listing.damaged[0].reason.contains(MANIFEST), "{}", listing.damaged[0].reason);
}

#[test]
fn a_manifest_that_points_outside_the_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    let written = checkpoint(&run, 10);
    let manifest = written.path.join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap().replace("rank0/cursor.json", "../../etc/passwd");
    fs::write(&manifest, text).unwrap();
    assert!(list(folder.path()).unwrap().damaged[0].reason.contains("outside"));
}

#[test]
fn writing_a_step_again_replaces_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    checkpoint(&run, 10);
    let writer = CheckpointWriter::begin(&run, 10).unwrap();
    fs::write(writer.folder().join("other"), "y").unwrap();
    let again = writer.finish().unwrap();
    again.verify().unwrap();
    assert!(!again.path.join("model.safetensors").exists());
    assert_eq!(steps(folder.path()), [10]);
}

#[test]
fn rotation_keeps_the_newest_up_to_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    for step in [10, 20, 30, 100] {
        checkpoint(&run, step);
    }
    assert_eq!(rotate(&run, Some(2), None).unwrap(), [10, 20]);
    assert_eq!(steps(folder.path()), [30, 100]);
}

#[test]
fn rotation_without_a_limit_deletes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    checkpoint(&run, 10);
    checkpoint(&run, 20);
    assert!(rotate(&run, None, None).unwrap().is_empty());
    assert!(rotate(&run, Some(0), None).unwrap().is_empty());
}

#[test]
fn rotation_keeps_the_best_beside_the_newest_also_with_a_limit_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    for step in [10, 20, 30] {
        checkpoint(&run, step);
    }
    assert_eq!(rotate(&run, Some(1), Some(10)).unwrap(), [20]);
    assert_eq!(steps(folder.path()), [10, 30]);
}

#[test]
fn rotation_never_deletes_the_last_good_one_when_newer_ones_are_damaged() {
    let folder = tempfile::tempdir().unwrap();
    {
        let run = open(folder.path());
        checkpoint(&run, 10);
        let flipped = checkpoint(&run, 20);
        fs::write(flipped.path.join("model.safetensors"), "weights 2!").unwrap();
    }
    // Another process, which has written nothing itself and resumes an explicit checkpoint of another folder.
    let other = tempfile::tempdir().unwrap();
    let run = open(other.path());
    for step in ["checkpoint-10", "checkpoint-20"] {
        fs::rename(folder.path().join(step), other.path().join(step)).unwrap();
    }
    assert_eq!(rotate(&run, Some(1), None).unwrap(), [20]);
    assert_eq!(steps(other.path()), [10]);
}

#[test]
fn a_model_only_checkpoint_is_listed_and_never_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    let mut writer = CheckpointWriter::begin(&run, 10).unwrap();
    fs::write(writer.folder().join("model.safetensors"), "w").unwrap();
    writer.set_model_only();
    writer.finish().unwrap();
    assert_eq!(steps(folder.path()), [10]);
    let (good, passed_by) = last_good(folder.path()).unwrap();
    assert!(good.is_none());
    assert!(passed_by[0].reason.contains("save_only_model"));
}

#[test]
fn a_large_file_is_hashed_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path());
    let writer = CheckpointWriter::begin(&run, 1).unwrap();
    let mut file = File::create(writer.folder().join("big")).unwrap();
    file.write_all(&vec![7; (1 << 20) + 1]).unwrap();
    let written = writer.finish().unwrap();
    let mut file = OpenOptions::new().write(true).open(written.path.join("big")).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(1 << 20)).unwrap();
    file.write_all(&[8]).unwrap();
    assert!(written.verify().is_err());
}

#[test]
fn a_write_that_lacked_only_its_last_rename_is_completed_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(&open(folder.path()), 10);
    fs::rename(folder.path().join("checkpoint-10"), folder.path().join("checkpoint-10.partial")).unwrap();
    drop(open(folder.path()));
    assert_eq!(steps(folder.path()), [10]);
}
