//! Ranks that meet through the HCCL calls, each on a thread, a device and a stream of its own.

use crate::api::{Double, P};
use crate::world::{D2H, F16, F32, H2D, World, numbers, pack, size_of, unpack};
use std::ptr::null_mut;
use std::thread;

const FP16: i32 = 3;
const FP32: i32 = 4;
const BFP16: i32 = 11;

/// What a rank works with.
struct Rank {
    d: &'static Double,
    rank: u32,
    comm: P,
    stream: P,
}

impl Rank {
    fn upload(&self, values: &[f64], dtype: i32) -> P {
        let (bytes, mut at) = (pack(values, dtype), null_mut());
        assert_eq!(self.d.aclrtMalloc(&mut at, bytes.len(), 0), 0);
        assert_eq!(self.d.aclrtMemcpy(at, bytes.len(), bytes.as_ptr().cast(), bytes.len(), H2D), 0);
        at
    }

    fn download(&self, at: P, n: usize, dtype: i32) -> Vec<f64> {
        let mut bytes = vec![0u8; n * size_of(dtype)];
        assert_eq!(self.d.aclrtMemcpy(bytes.as_mut_ptr().cast(), bytes.len(), at, bytes.len(), D2H), 0);
        unpack(&bytes, dtype)
    }

    fn free(&self, all: &[P]) {
        all.iter().for_each(|at| assert_eq!(self.d.aclrtFree(*at), 0));
    }
}

/// Runs `work` on every rank; what each answers, in their order.
fn ranks<R: Send>(w: &World, n: u32, work: impl Fn(&Rank) -> R + Sync) -> Vec<R> {
    let mut info = [0u8; 4108];
    assert_eq!(w.d.HcclGetRootInfo(&raw mut info), 0);
    let (d, info, work) = (w.d, &info, &work);
    thread::scope(|scope| {
        let start = |rank: u32| {
            scope.spawn(move || {
                let (mut comm, mut stream) = (null_mut(), null_mut());
                assert_eq!(d.aclrtSetDevice(rank as i32), 0);
                assert_eq!(d.aclrtCreateStream(&mut stream), 0);
                assert_eq!(d.HcclCommInitRootInfo(n, &raw const *info, rank, &mut comm), 0);
                let answer = work(&Rank { d, rank, comm, stream });
                assert_eq!(d.HcclCommDestroy(comm), 0);
                assert_eq!(d.aclrtDestroyStream(stream), 0);
                answer
            })
        };
        let threads: Vec<_> = (0..n).map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// In both modes, with several seeds of delays.
fn both_modes(test: impl Fn(&World)) {
    for seed in 0..4 {
        let w = if seed == 0 { World::lazy() } else { World::threaded(seed) };
        test(&w);
        assert_eq!((w.end(), w.d.faults()), (String::new(), String::new()), "seed {seed}");
    }
}

/// Sums in place and beside, several behind each other: float32 in the order of ranks, rounded once.
#[test]
fn sums_are_in_the_order_of_ranks() {
    both_modes(|w| {
        for (hccl, dtype) in [(FP32, F32), (FP16, F16), (BFP16, crate::world::BF16)] {
            let given = |rank: u32| unpack(&pack(&numbers(100, u64::from(rank) + 1), dtype), dtype);
            let found = ranks(w, 3, |rank| {
                let (a, b) = (rank.upload(&given(rank.rank), dtype), rank.upload(&[0.0; 100], dtype));
                assert_eq!(rank.d.HcclAllReduce(a, b, 100, hccl, 0, rank.comm, rank.stream), 0);
                assert_eq!(rank.d.HcclAllReduce(a, a, 100, hccl, 2, rank.comm, rank.stream), 0);
                assert_eq!(rank.d.aclrtSynchronizeStream(rank.stream), 0);
                let sums = (rank.download(b, 100, dtype), rank.download(a, 100, dtype));
                rank.free(&[a, b]);
                sums
            });
            let all = [given(0), given(1), given(2)];
            let sum = |i: usize| f64::from(all[0][i] as f32 + all[1][i] as f32 + all[2][i] as f32);
            let sums = unpack(&pack(&(0..100).map(sum).collect::<Vec<_>>(), dtype), dtype);
            let tops: Vec<f64> = (0..100).map(|i| all[0][i].max(all[1][i]).max(all[2][i])).collect();
            for (a, b) in found {
                assert_eq!((a, b), (sums.clone(), tops.clone()));
            }
        }
    });
}

#[test]
fn gathers_broadcasts_and_pairs() {
    both_modes(|w| {
        let found = ranks(w, 2, |rank| {
            let own = f64::from(rank.rank + 1);
            let (a, b, c) =
                (rank.upload(&[own; 4], F32), rank.upload(&[0.0; 8], F32), rank.upload(&[own * 10.0; 4], F32));
            assert_eq!(rank.d.HcclAllGather(a, b, 4, FP32, rank.comm, rank.stream), 0);
            assert_eq!(rank.d.HcclBroadcast(c, 4, FP32, 1, rank.comm, rank.stream), 0);
            match rank.rank {
                0 => assert_eq!(rank.d.HcclSend(a, 4, FP32, 1, rank.comm, rank.stream), 0),
                _ => assert_eq!(rank.d.HcclRecv(a, 4, FP32, 0, rank.comm, rank.stream), 0),
            }
            assert_eq!(rank.d.aclrtSynchronizeStream(rank.stream), 0);
            let all = (rank.download(b, 8, F32), rank.download(c, 4, F32), rank.download(a, 4, F32));
            rank.free(&[a, b, c]);
            all
        });
        let gathered = vec![1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0];
        let expected = (gathered, vec![20.0; 4], vec![1.0; 4]);
        assert_eq!(found, [expected.clone(), expected]);
    });
}

/// One thread waits for all ranks in turn, as a host that lands steps may: nobody needs a thread of his own to come on.
#[test]
fn one_thread_may_wait_for_all() {
    let w = World::lazy();
    let streams = ranks(&w, 2, |rank| {
        let at = rank.upload(&[1.0; 16], F32);
        assert_eq!(rank.d.HcclAllReduce(at, at, 16, FP32, 0, rank.comm, rank.stream), 0);
        // Rank 0 waits for both; the other does nothing.
        let code = if rank.rank == 0 { rank.d.aclrtSynchronizeStream(rank.stream) } else { 0 };
        if rank.rank == 1 {
            let mut status = 1;
            while status != 0 {
                thread::sleep(std::time::Duration::from_millis(1));
                status = i32::from(rank.download(at, 16, F32) != [2.0; 16]);
            }
            assert_eq!(rank.d.aclrtSynchronizeStream(rank.stream), 0);
        }
        rank.free(&[at]);
        code
    });
    assert_eq!(streams, [0, 0]);
    // Rank 1 looked at its memory before it had waited, and was told so.
    assert!(w.d.faults().lines().all(|line| line.starts_with("missing-sync: ")), "{}", w.d.faults());
    assert_eq!(w.end(), "");
}

#[test]
fn calls_that_do_not_fit_are_caught() {
    let w = World::lazy();
    let codes = ranks(&w, 2, |rank| {
        let at = rank.upload(&[1.0; 16], F32);
        let n = if rank.rank == 0 { 16 } else { 8 };
        assert_eq!(rank.d.HcclAllReduce(at, at, n, FP32, 0, rank.comm, rank.stream), 0);
        let code = rank.d.aclrtSynchronizeStream(rank.stream);
        let mut error = 0;
        assert_eq!(rank.d.HcclGetCommAsyncError(rank.comm, &mut error), 0);
        rank.free(&[at]);
        (code, error)
    });
    assert_eq!(codes, [(507_899, 21); 2]);
    assert!(w.d.faults().starts_with("hccl-mismatch: "), "{}", w.d.faults());
    assert_eq!(w.end(), "");
}

/// A rank whose step fails on the device frees the others, in both modes.
#[test]
fn a_failing_rank_frees_the_others() {
    both_modes(|w| {
        w.d.yn_double_async_error_on(1, 1, 507_015);
        let codes = ranks(w, 2, |rank| {
            let at = rank.upload(&[1.0; 16], F32);
            rank.d.aclrtMemsetAsync(at, 64, 0, 64, rank.stream);
            rank.d.HcclAllReduce(at, at, 16, FP32, 0, rank.comm, rank.stream);
            let code = rank.d.aclrtSynchronizeStream(rank.stream);
            rank.free(&[at]);
            code
        });
        assert_eq!(codes, [507_899, 507_015]);
    });
}

#[test]
fn two_ranks_do_not_share_a_device() {
    let w = World::lazy();
    let (mut info, mut comm) = ([0u8; 4108], null_mut());
    w.d.HcclGetRootInfo(&raw mut info);
    thread::scope(|scope| {
        let (d, info) = (w.d, &info);
        let first = scope.spawn(move || {
            let mut comm = null_mut();
            d.aclrtSetDevice(1);
            let code = d.HcclCommInitRootInfo(2, &raw const *info, 1, &mut comm);
            d.HcclCommDestroy(comm);
            code
        });
        w.d.aclrtSetDevice(1);
        while w.d.yn_double_calls(c"HcclCommInitRootInfo".as_ptr()) == 0 {
            thread::yield_now();
        }
        thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(w.d.HcclCommInitRootInfo(2, &raw const *info, 0, &mut comm), 1);
        assert!(w.d.faults().starts_with("comm: "), "{}", w.d.faults());
        w.d.aclrtSetDevice(0);
        assert_eq!(w.d.HcclCommInitRootInfo(2, &raw const *info, 0, &mut comm), 0);
        assert_eq!(first.join().unwrap(), 0);
    });
    w.d.HcclCommDestroy(comm);
    assert_eq!(w.end(), "");
}
