use super::device::{Parameters, Shape};
use super::*;

use testing::device;

/// On a machine without a driver the answer is `NoDriver`; with one, devices have memory. Either way, no panic.
#[test]
fn probing_answers_on_every_machine() {
    match probe() {
        Ok(machine) => assert!(machine.devices.iter().all(|device| device.memory_total_bytes > 0)),
        Err(CudaUnavailable::NoDriver) => assert!(!driver_present()),
        Err(CudaUnavailable::NoDevice | CudaUnavailable::Broken(_)) => assert!(driver_present()),
    }
}

const READ: Shape = Shape { grid: [3, 1, 1], threads: 256, shared_bytes: 0, overlaps: false };

/// The exclusive or of all words is that of what the threads have read.
#[test]
fn a_kernel_reads_every_word_of_its_input() {
    let Some(device) = device() else { return };
    let words: Vec<u32> = (0..4 * 10_007u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    let (input, sums) = (device.buffer_of(&words).unwrap(), device.buffer::<u32>(4 * 3 * 256).unwrap());
    let kernel = device.kernel("bandwidth", "bandwidth_read").unwrap();
    let parameters = [input.address(), words.len() as u64 / 4, sums.address()];
    for overlaps in [false, true] {
        device.zero(&sums, 0..sums.len()).unwrap();
        let given = Parameters { starts: &[0, 1, 2], words: &parameters };
        device.launch(kernel, Shape { overlaps, ..READ }, given).unwrap();
        let all = device.read(&sums).unwrap().iter().fold(0, |all, sum| all ^ sum);
        assert_eq!(all, words.iter().fold(0, |all, word| all ^ word));
    }
}

#[test]
#[should_panic(expected = "parameter")]
fn a_launch_with_a_parameter_too_few_is_caught() {
    let Some(device) = device() else { panic!("no parameter is checked without a driver") };
    let kernel = device.kernel("bandwidth", "bandwidth_read").unwrap();
    let _ = device.launch(kernel, READ, Parameters { starts: &[0, 1], words: &[0, 0] });
}

#[test]
#[should_panic(expected = "parameter")]
fn a_launch_with_a_parameter_of_another_size_is_caught() {
    let Some(device) = device() else { panic!("no parameter is checked without a driver") };
    let kernel = device.kernel("bandwidth", "bandwidth_read").unwrap();
    let _ = device.launch(kernel, READ, Parameters { starts: &[0, 1, 3], words: &[0; 4] });
}

#[test]
fn shapes_that_no_device_has_are_refused() {
    let Some(device) = device() else { return };
    let kernel = device.kernel("bandwidth", "bandwidth_read").unwrap();
    let sums = device.buffer::<u32>(4 * 3 * 256).unwrap();
    let nothing = [sums.address(), 0, sums.address()];
    let launch = |shape| device.launch(kernel, shape, Parameters { starts: &[0, 1, 2], words: &nothing });
    assert!(matches!(launch(Shape { grid: [0, 1, 1], ..READ }), Err(CudaError::Refused { what: "a launch", .. })));
    assert!(matches!(launch(Shape { threads: 1025, ..READ }), Err(CudaError::Refused { .. })));
    assert!(matches!(launch(Shape { shared_bytes: 300 << 10, ..READ }), Err(CudaError::Refused { .. })));
    // More than the 48 KiB that a block has without asking.
    assert_eq!(launch(Shape { shared_bytes: 64 << 10, ..READ }), Ok(()));
    assert_eq!(device.synchronise(), Ok(()));
}

#[test]
fn kernels_that_are_not_there_are_named() {
    let Some(device) = device() else { return };
    let missing = |module, kernel| device.kernel(module, kernel).unwrap_err().to_string();
    assert!(missing("bandwidth", "write").contains("bandwidth::write"));
    assert!(missing("latency", "read").contains("latency::read"));
}

#[test]
fn copies_arrive_where_they_should() {
    let Some(device) = device() else { return };
    let mut host = device.pinned::<u16>(100).unwrap();
    assert!(host.iter().all(|&value| value == 0), "pinned memory begins as zeros");
    host.iter_mut().zip(1..).for_each(|(value, i)| *value = i);
    let (a, b) = (device.zeroed::<u16>(64).unwrap(), device.zeroed::<u16>(64).unwrap());
    device.upload(&host, 90..100, &a, 54).unwrap();
    device.copy(&a, 60..64, &b, 1).unwrap();
    device.zero(&b, 4..5).unwrap();
    let (mut at_a, mut at_b) = (vec![0; 64], vec![0; 64]);
    at_a[54..].copy_from_slice(&[91, 92, 93, 94, 95, 96, 97, 98, 99, 100]);
    at_b[1..4].copy_from_slice(&[97, 98, 99]);
    assert_eq!(device.read(&a).unwrap(), at_a);
    assert_eq!(device.read(&b).unwrap(), at_b);
    device.download(&a, 62..64, &mut host).unwrap();
    assert_eq!(host[..3], [99, 100, 3]);
}

/// A copy is under way until somebody waits. Writing to what it reads does.
#[test]
fn pinned_memory_is_not_written_to_while_it_is_copied() {
    let Some(device) = device() else { return };
    let mut host = device.pinned::<u8>(1000).unwrap();
    let (a, b) = (device.buffer::<u8>(1000).unwrap(), device.buffer::<u8>(1000).unwrap());
    host.fill(1);
    device.upload(&host, 0..1000, &a, 0).unwrap();
    host.fill(2);
    let mut copied = device.event().unwrap();
    copied.wait().unwrap();
    device.upload(&host, 0..1000, &b, 0).unwrap();
    copied.record().unwrap();
    copied.wait().unwrap();
    host.fill(3);
    assert_eq!(device.read(&a).unwrap(), [1; 1000]);
    assert_eq!(device.read(&b).unwrap(), [2; 1000]);
}

#[test]
#[should_panic(expected = "out of bounds")]
fn copies_stay_in_bounds() {
    let Some(device) = device() else { panic!("no bounds are checked without a driver, or out of bounds") };
    let (host, buffer) = (device.pinned::<u8>(10).unwrap(), device.buffer::<u8>(10).unwrap());
    device.upload(&host, 0..5, &buffer, 6).unwrap();
}

#[test]
fn a_graph_does_what_was_captured_on_what_is_there_then() {
    let Some(device) = device() else { return };
    let words = device.zeroed::<u32>(4 * 256).unwrap();
    let sums = device.zeroed::<u32>(4 * 3 * 256).unwrap();
    let kernel = device.kernel("bandwidth", "bandwidth_read").unwrap();
    let parameters = [words.address(), 256, sums.address()];
    let launch = || device.launch(kernel, READ, Parameters { starts: &[0, 1, 2], words: &parameters });
    device.zero(&sums, 0..sums.len()).unwrap();
    let graph = device.capture::<CudaError>(launch).unwrap();
    let total = || device.read(&sums).unwrap().iter().fold(0, |all, sum| all ^ sum);
    for value in [5u32, 9] {
        let mut host = device.pinned::<u32>(1).unwrap();
        host[0] = value;
        device.upload(&host, 0..1, &words, 17).unwrap();
        graph.launch().unwrap();
        assert_eq!(total(), value);
    }
}

#[test]
fn a_capture_that_waits_or_launches_nothing_fails_and_leaves_the_device_working() {
    let Some(device) = device() else { return };
    assert!(device.capture(|| device.synchronise()).is_err());
    assert!(device.capture(|| device.buffer::<u8>(1).map(drop)).is_err());
    let refused = device.capture(|| Err(CudaError::NoSuchDevice { ordinal: 7, devices: 1 }));
    assert_eq!(refused.unwrap_err(), CudaError::NoSuchDevice { ordinal: 7, devices: 1 });
    assert_eq!(device.read(&device.buffer_of(&[1u8, 2, 3]).unwrap()).unwrap(), [1, 2, 3]);
}

#[test]
fn more_memory_than_there_is_is_an_error_with_a_remedy() {
    let Some(device) = device() else { return };
    let error = device.buffer::<u64>(1 << 50).unwrap_err();
    assert!(matches!(error, CudaError::OutOfMemory { bytes, .. } if bytes == 8 << 50));
    assert!(error.to_string().contains("--kv-cache-bytes"));
    assert!(device.buffer::<u64>(usize::MAX).is_err());
}

#[test]
fn memory_comes_back_when_buffers_go() {
    let Some(device) = device() else { return };
    // Other tests come and go meanwhile; this one is larger than all of theirs.
    let bytes = device.facts().memory_total_bytes / 16;
    let before = device.memory_free_bytes().unwrap();
    let buffer = device.buffer::<u8>(bytes).unwrap();
    assert!(device.memory_free_bytes().unwrap() < before - bytes / 2);
    drop(buffer);
    assert!(device.memory_free_bytes().unwrap() > before - bytes / 2);
}

#[test]
fn devices_work_from_any_thread() {
    let Some(device) = device() else { return };
    std::thread::scope(|scope| {
        for i in 0..4u8 {
            let device = device.clone();
            scope.spawn(move || assert_eq!(device.read(&device.buffer_of(&[i; 9]).unwrap()).unwrap(), [i; 9]));
        }
    });
}

#[test]
fn a_device_that_nobody_has_is_an_error() {
    if device().is_none() {
        assert_eq!(Device::open(0).unwrap_err(), CudaError::Unavailable(CudaUnavailable::NoDriver));
        return;
    }
    let error = Device::open(63).unwrap_err();
    assert!(matches!(error, CudaError::NoSuchDevice { ordinal: 63, devices } if devices > 0));
}

#[test]
fn bandwidth_is_measured() {
    let Some(device) = device() else { return };
    let bandwidth = device.bandwidth_of(1 << 20, 2).unwrap();
    assert!(bandwidth.copy_bytes_per_second > 1e6 && bandwidth.read_bytes_per_second > 1e6, "{bandwidth:?}");
}
