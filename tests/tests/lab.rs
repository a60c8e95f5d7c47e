//! The lab behind `make demo`, from outside; in a sandbox, so that nobody else changes the host.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use flannel_tests::sandbox::sandboxed;
use flannel_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn lab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.env_remove("KEEP").env_remove("STORE").stdin(Stdio::null());
    command
}

/// What must look the same after the lab as before it.
fn host() -> String {
    let links = fs::read_to_string("/proc/self/net/dev").unwrap();
    let links: Vec<_> = links.lines().filter_map(|line| line.split_once(':')).collect();
    let names: Vec<_> = links.into_iter().map(|(name, _)| name.trim()).collect();
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let namespaces: Vec<_> = namespaces.map(|entry| entry.file_name()).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    format!("{names:?}\n{namespaces:?}\n{mounts}")
}

#[test]
fn it_pings_every_pair_and_leaves_the_host_as_it_was() {
    sandboxed(|| {
        let before = host();
        let output = lab().output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        for word in ["n1 at 198.51.100.1", "n3-p2", "flannel.1 mtu 1450", "peer    10.244."] {
            assert!(text.contains(word), "{word} is missing in:\n{text}");
        }
        assert!(!text.contains("FAIL"), "{text}");
        assert_eq!(host(), before);
    });
}

#[test]
fn it_ends_on_an_interrupt_with_130_and_takes_everything_with_it() {
    sandboxed(|| {
        let before = host();
        let mark = format!("LAB_TEST={}", std::process::id());
        // The shell waits for its input; the lab stays until it is interrupted.
        let (name, value) = mark.split_once('=').unwrap();
        let mut child = lab()
            .env("KEEP", "1")
            .env("SHELL", "/bin/sh")
            .env(name, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let shell = lines.find(|line| line.as_ref().unwrap().contains("This shell is inside"));
        assert!(shell.is_some(), "{:?}", child.wait_with_output());
        wait::until_true("the lab and its shell run", || processes_with(&mark) >= 3);
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert_eq!(processes_with(&mark), 0);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(message.trim().lines().count(), 1, "{message}");
        assert_eq!(host(), before);
    });
}

/// Processes with this variable in their environment.
fn processes_with(mark: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let environments = processes.filter_map(|entry| fs::read(entry.path().join("environ")).ok());
    environments.filter(|text| text.split(|byte| *byte == 0).any(|v| v == mark.as_bytes())).count()
}

#[test]
fn it_fails_with_a_word_when_a_program_does() {
    let output = lab().env("TEST_FLANNELD", "/bin/false").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("flanneld on n1 ended"), "{message}");
}

#[test]
fn it_knows_two_stores() {
    let output = lab().env("STORE", "paper").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("STORE=paper") && message.contains("etcd"), "{message}");
}
