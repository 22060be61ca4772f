//! Mistakes with what ops are given.

use super::{Case, NOTHING, Seen};
use crate::cache::{Batch, Cached, Call, DIM, HEADS, sums};
use crate::world::{BF16, F16, F32, I32, T, World};

const ATTENTION: &str = "aclnnFusedInferAttentionScoreV3GetWorkspaceSize";
const SCATTER: &str = "aclnnScatterPaKvCacheGetWorkspaceSize";
const WAIT: &str = "aclrtSynchronizeStream";

/// Phase 1's answer, or else what waiting says.
fn seen(w: &World, call: &'static str, code: i32) -> Seen {
    if code != 0 {
        return (call, code);
    }
    match w.sync() {
        0 => NOTHING,
        code => (WAIT, code),
    }
}

fn multiply(w: &World, a: T, b: T, out: T) -> Seen {
    let code = w.run(
        |n, e| w.d.aclnnMatmulGetWorkspaceSize(a.handle, b.handle, out.handle, 0, n, e),
        |p, n, e, s| w.d.aclnnMatmul(p, n, e, s),
    );
    seen(w, "aclnnMatmulGetWorkspaceSize", code)
}

/// The same two bytes are another number in another half format.
fn wrong_dtype_code(w: &World, planted: bool) -> Seen {
    let dtype = if planted { F16 } else { BF16 };
    let (a, b) = (w.tensor(&[2, 16], BF16, &[1.0; 32]), w.tensor(&[16, 4], dtype, &[1.0; 64]));
    multiply(w, a, b, w.empty(&[2, 4], BF16))
}

fn wide_output(w: &World, planted: bool) -> Seen {
    let (a, b) = (w.tensor(&[2, 16], BF16, &[1.0; 32]), w.tensor(&[16, 4], BF16, &[1.0; 64]));
    multiply(w, a, b, w.empty(&[2, 4], if planted { F32 } else { BF16 }))
}

fn wrong_shape(w: &World, planted: bool) -> Seen {
    let (a, b) = (w.tensor(&[2, 16], BF16, &[1.0; 32]), w.tensor(&[16, 4], BF16, &[1.0; 64]));
    multiply(w, a, b, w.empty(if planted { &[4, 2] } else { &[2, 4] }, BF16))
}

fn beyond_its_storage(w: &World, planted: bool) -> Seen {
    let (a, b, out) = (w.malloc(128), w.tensor(&[16, 4], BF16, &[1.0; 64]), w.empty(&[2, 4], BF16));
    w.d.aclrtMemset(a, 128, 0, 128);
    let view = w.view(a, &[2, 16], Some(&[if planted { 24 } else { 16 }, 1]), 0, &[32], BF16);
    let a_tensor = T { handle: view, at: a, bytes: 64, dtype: BF16 };
    let seen = multiply(w, a_tensor, b, out);
    w.d.aclDestroyTensor(view);
    w.d.aclrtFree(a);
    seen
}

/// The gate's rows are wider than what is given of them.
fn strided_where_dense_is_asked(w: &World, planted: bool) -> Seen {
    let (at, y) = (w.malloc(512), w.empty(&[2, 16], BF16));
    w.d.aclrtMemset(at, 512, 0, 512);
    let x = w.view(at, &[2, 32], Some(&[if planted { 48 } else { 32 }, 1]), 0, &[128], BF16);
    let code =
        w.run(|n, e| w.d.aclnnSwiGluGetWorkspaceSize(x, -1, y.handle, n, e), |p, n, e, s| w.d.aclnnSwiGlu(p, n, e, s));
    let seen = seen(w, "aclnnSwiGluGetWorkspaceSize", code);
    w.d.aclDestroyTensor(x);
    w.d.aclrtFree(at);
    seen
}

fn weights_of_a_norm(w: &World, planted: bool) -> Seen {
    let (x, y) = (w.tensor(&[1, 32], BF16, &[1.0; 32]), w.empty(&[1, 32], BF16));
    let (gamma, rstd) = (w.tensor(&[32], if planted { F32 } else { BF16 }, &[1.0; 32]), w.empty(&[1, 1], F32));
    let code = w.run(
        |n, e| w.d.aclnnRmsNormGetWorkspaceSize(x.handle, gamma.handle, 1e-6, y.handle, rstd.handle, n, e),
        |p, n, e, s| w.d.aclnnRmsNorm(p, n, e, s),
    );
    seen(w, "aclnnRmsNormGetWorkspaceSize", code)
}

fn id_out_of_range(w: &World, planted: bool) -> Seen {
    let table = w.tensor(&[10, 16], F32, &[1.0; 160]);
    let (ids, out) = (w.tensor(&[2], I32, &[3.0, if planted { 10.0 } else { 9.0 }]), w.empty(&[2, 16], F32));
    let code = w.run(
        |n, e| w.d.aclnnEmbeddingGetWorkspaceSize(table.handle, ids.handle, out.handle, n, e),
        |p, n, e, s| w.d.aclnnEmbedding(p, n, e, s),
    );
    seen(w, "aclnnEmbeddingGetWorkspaceSize", code)
}

/// Heads of 64 for an op that rotates heads of 128.
fn rotary_head_dim(w: &World, planted: bool) -> Seen {
    let d = if planted { 64 } else { 128 };
    let zeros = |dims: &[i64]| w.tensor(dims, F16, &vec![0.0; dims.iter().product::<i64>() as usize]);
    let (q, k) = (zeros(&[1, 2, 2, d]), zeros(&[1, 2, 1, d]));
    let (cos, sin) = (zeros(&[1, 2, 1, d]), zeros(&[1, 2, 1, d]));
    let half = World::name("half");
    let code = w.run(
        |n, e| w.d.aclnnApplyRotaryPosEmbV2GetWorkspaceSize(q.handle, k.handle, cos.handle, sin.handle, 1, half, n, e),
        |p, n, e, s| w.d.aclnnApplyRotaryPosEmbV2(p, n, e, s),
    );
    seen(w, "aclnnApplyRotaryPosEmbV2GetWorkspaceSize", code)
}

/// Two sequences with 3 and 5 keys; all of them asked, the slots changed by `spoil`.
fn written(w: &World, spoil: impl Fn(&mut Vec<f64>, &Batch)) -> Seen {
    let batch = Batch::new(&[3, 5], &[3, 5]);
    let cached = Cached::new(w, &batch);
    let mut slots = batch.slots();
    spoil(&mut slots, &batch);
    let code = cached.scatter(w, &slots);
    seen(w, SCATTER, code)
}

fn slot_out_of_range(w: &World, planted: bool) -> Seen {
    written(w, |slots, batch| {
        if planted {
            slots[4] = (batch.blocks() * batch.block_size) as f64;
        }
    })
}

fn slot_of_padding(w: &World, planted: bool) -> Seen {
    written(w, |slots, _| {
        if planted {
            slots[7] = -1.0;
        }
    })
}

fn slot_twice(w: &World, planted: bool) -> Seen {
    written(w, |slots, _| {
        if planted {
            slots[7] = slots[0];
        }
    })
}

/// Two sequences with caches, attended to by a call that `spoil` changes.
fn attended(w: &World, block_size: i64, spoil: impl Fn(&World, &Batch, &mut Call)) -> Seen {
    let batch = Batch { block_size, ..Batch::new(&[3, 2], &[3, 6]) };
    let cached = Cached::new(w, &batch);
    assert_eq!(cached.scatter(w, &batch.slots()), 0);
    let mut call = Call::paged(w, &batch, &cached);
    spoil(w, &batch, &mut call);
    seen(w, ATTENTION, call.run(w))
}

fn query_lengths_per_sequence(w: &World, planted: bool) -> Seen {
    attended(w, 128, |w, batch, call| {
        if planted {
            call.query_lengths = w.ints(&batch.queries);
        }
    })
}

fn key_lengths_cumulative(w: &World, planted: bool) -> Seen {
    attended(w, 128, |w, batch, call| {
        if planted {
            call.key_lengths = w.ints(&sums(&batch.keys));
        }
    })
}

fn longer_than_its_blocks(w: &World, planted: bool) -> Seen {
    attended(w, 128, |w, _, call| {
        if planted {
            call.key_lengths = w.ints(&[3, 129]);
        }
    })
}

fn more_queries_than_keys(w: &World, planted: bool) -> Seen {
    attended(w, 128, |w, _, call| {
        if planted {
            call.key_lengths = w.ints(&[2, 6]);
        }
    })
}

fn block_out_of_range(w: &World, planted: bool) -> Seen {
    attended(w, 128, |w, batch, call| {
        let mut table = batch.table();
        if planted {
            table[1] = batch.blocks() as f64;
        }
        call.table = w.tensor(&[2, 1], I32, &table).handle;
    })
}

fn block_size_256(w: &World, planted: bool) -> Seen {
    let batch = Batch { block_size: if planted { 256 } else { 128 }, ..Batch::new(&[3, 2], &[3, 6]) };
    let cached = Cached::new(w, &batch);
    assert_eq!(cached.scatter(w, &batch.slots()), 0);
    seen(w, ATTENTION, Call::paged(w, &batch, &cached).run(w))
}

/// Several queries of one sequence ask for blocks of 128.
fn block_size_16(w: &World, planted: bool) -> Seen {
    let batch = Batch { block_size: if planted { 16 } else { 128 }, ..Batch::new(&[3], &[6]) };
    let cached = Cached::new(w, &batch);
    assert_eq!(cached.scatter(w, &batch.slots()), 0);
    let mut call = Call::paged(w, &batch, &cached);
    let dims = [1, 3, HEADS, DIM];
    let query = w.view(cached.query.at, &dims, None, 0, &dims, BF16);
    let out = w.view(cached.out.at, &dims, None, 0, &dims, BF16);
    (call.query, call.out, call.layout) = (query, out, "BSND");
    let seen = seen(w, ATTENTION, call.run(w));
    for t in [query, out] {
        w.d.aclDestroyTensor(t);
    }
    seen
}

fn mask_upside_down(w: &World, planted: bool) -> Seen {
    attended(w, 128, |w, _, call| {
        if planted {
            let values: Vec<f64> = (0..2048 * 2048).map(|i| f64::from(u8::from(i % 2048 <= i / 2048))).collect();
            call.mask = w.tensor(&[2048, 2048], crate::world::I8, &values).handle;
        }
    })
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "wrong dtype code",
        program: wrong_dtype_code,
        caught: ("aclnnMatmulGetWorkspaceSize", 161_002),
        kind: "dtype",
    },
    Case {
        name: "product wider than its inputs",
        program: wide_output,
        caught: ("aclnnMatmulGetWorkspaceSize", 161_002),
        kind: "dtype",
    },
    Case {
        name: "output of another shape",
        program: wrong_shape,
        caught: ("aclnnMatmulGetWorkspaceSize", 161_002),
        kind: "shape",
    },
    Case {
        name: "view beyond its storage",
        program: beyond_its_storage,
        caught: ("aclnnMatmulGetWorkspaceSize", 161_002),
        kind: "storage",
    },
    Case {
        name: "view where a dense tensor is asked",
        program: strided_where_dense_is_asked,
        caught: ("aclnnSwiGluGetWorkspaceSize", 161_002),
        kind: "contiguity",
    },
    Case {
        name: "norm weights of another dtype",
        program: weights_of_a_norm,
        caught: ("aclnnRmsNormGetWorkspaceSize", 161_002),
        kind: "dtype",
    },
    Case {
        name: "rotary op with heads of 64",
        program: rotary_head_dim,
        caught: ("aclnnApplyRotaryPosEmbV2GetWorkspaceSize", 161_002),
        kind: "head-dim",
    },
    Case { name: "token id out of range", program: id_out_of_range, caught: (WAIT, 507_015), kind: "index-range" },
    Case { name: "slot out of range", program: slot_out_of_range, caught: (WAIT, 507_015), kind: "slot-range" },
    Case { name: "slot of padding", program: slot_of_padding, caught: (WAIT, 507_015), kind: "slot-range" },
    Case { name: "slot twice", program: slot_twice, caught: (WAIT, 507_015), kind: "slot-repeated" },
    Case {
        name: "query lengths per sequence",
        program: query_lengths_per_sequence,
        caught: (ATTENTION, 161_002),
        kind: "lengths",
    },
    Case {
        name: "key lengths cumulative",
        program: key_lengths_cumulative,
        caught: (WAIT, 507_015),
        kind: "kv-unwritten",
    },
    Case {
        name: "more keys than blocks hold",
        program: longer_than_its_blocks,
        caught: (ATTENTION, 161_002),
        kind: "lengths",
    },
    Case {
        name: "more queries than keys",
        program: more_queries_than_keys,
        caught: (ATTENTION, 161_002),
        kind: "lengths",
    },
    Case { name: "block id out of range", program: block_out_of_range, caught: (WAIT, 507_015), kind: "block-range" },
    Case { name: "block size 16", program: block_size_16, caught: (ATTENTION, 161_002), kind: "block-size" },
    Case { name: "block size 256 in TND", program: block_size_256, caught: (ATTENTION, 161_002), kind: "block-size" },
    Case { name: "mask upside down", program: mask_upside_down, caught: (WAIT, 507_015), kind: "mask" },
];
