//! What ops compute, against plain references in double precision that know nothing of the double's code.

use crate::cache::{Batch, Cached, Call, DIM, HEADS, KV_HEADS, sums};
use crate::world::{BF16, F16, F32, I32, I64, T, World, numbers, pack, unpack};
use std::ptr::null_mut;

const HALVES: [i32; 2] = [F16, BF16];
const FLOATS: [i32; 3] = [F32, F16, BF16];

/// Numbers as they are after rounding to a dtype.
fn rounded(values: &[f64], dtype: i32) -> Vec<f64> {
    unpack(&pack(values, dtype), dtype)
}

/// A rounding of what the result is, and what sums in float32 lose.
fn close(what: &str, found: &[f64], expected: &[f64], dtype: i32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let rounding = match dtype {
        F16 => 1.0 / 2048.0,
        BF16 => 1.0 / 256.0,
        _ => 1e-6,
    };
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= rounding * b.abs() + 3e-6, "{what}, dtype {dtype}, element {i}: {a}, not {b}");
    }
}

fn ok(w: &World, code: i32) {
    assert_eq!(code, 0, "{}", w.d.faults());
}

/// One op with one result, in a world of its own.
fn with(dtypes: &[i32], test: impl Fn(&World, i32)) {
    for dtype in dtypes {
        let w = World::lazy();
        test(&w, *dtype);
        assert_eq!((w.end().as_str(), w.d.faults().as_str()), ("", ""), "dtype {dtype}");
    }
}

/// A tensor of numbers between -1 and 1, and these numbers as the device has them.
fn random(w: &World, dims: &[i64], dtype: i32, seed: u64) -> (T, Vec<f64>) {
    let values = rounded(&numbers(dims.iter().product::<i64>() as usize, seed), dtype);
    (w.tensor(dims, dtype, &values), values)
}

#[test]
fn products() {
    with(&FLOATS, |w, dtype| {
        let (m, k, n) = (5, 83, 7);
        let ((a, x), (b, y)) = (random(w, &[m, k], dtype, 1), random(w, &[n, k], dtype, 2));
        // Weights stay [N, K]; the op sees them turned.
        let turned = w.view(b.at, &[k, n], Some(&[1, k]), 0, &[n, k], dtype);
        let out = w.empty(&[m, n], dtype);
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnMatmulGetWorkspaceSize(a.handle, turned, out.handle, 0, s, e),
                |p, s, e, t| w.d.aclnnMatmul(p, s, e, t),
            ),
        );
        let at = |i: i64, j: i64| (0..k).map(|c| x[(i * k + c) as usize] * y[(j * k + c) as usize]).sum::<f64>();
        let expected: Vec<f64> = (0..m * n).map(|e| at(e / n, e % n)).collect();
        close("matmul", &w.read(out), &expected, dtype);
        w.d.aclDestroyTensor(turned);
    });
}

#[test]
fn sums_and_factors() {
    with(&FLOATS, |w, dtype| {
        let ((a, x), (b, y)) = (random(w, &[3, 10], dtype, 1), random(w, &[10], dtype, 2));
        let (sum, product, alpha) = (w.empty(&[3, 10], dtype), w.empty(&[3, 10], dtype), w.scalar(2.0));
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnAddGetWorkspaceSize(a.handle, b.handle, alpha, sum.handle, s, e),
                |p, s, e, t| w.d.aclnnAdd(p, s, e, t),
            ),
        );
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnMulGetWorkspaceSize(a.handle, b.handle, product.handle, s, e),
                |p, s, e, t| w.d.aclnnMul(p, s, e, t),
            ),
        );
        let each = |f: fn(f64, f64) -> f64| -> Vec<f64> { (0..30).map(|i| f(x[i], y[i % 10])).collect() };
        close("add", &w.read(sum), &each(|a, b| a + 2.0 * b), dtype);
        close("mul", &w.read(product), &each(|a, b| a * b), dtype);
    });
}

/// Every number of a half format, and those between two of them, as the crate `half` rounds them.
#[test]
fn casts() {
    let mut all: Vec<f64> = (0..=u16::MAX).map(|bits| f64::from(f32::from_bits(u32::from(bits) << 16))).collect();
    all.extend((0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f64()));
    all.extend((0..20_000).map(|i| f64::from(f32::from_bits(0x3300_0001 + i * 4099))));
    all.extend((0..20_000).map(|i| f64::from(f32::from_bits(0xB87F_E000 + i * 16))));
    let n = all.len() as i64;
    with(&HALVES, |w, dtype| {
        let (x, y, z) = (w.tensor(&[n], F32, &all), w.empty(&[n], dtype), w.empty(&[n], F32));
        let cast = |from: T, to: T| {
            w.run(
                |s, e| w.d.aclnnCastGetWorkspaceSize(from.handle, to.dtype, to.handle, s, e),
                |p, s, e, t| w.d.aclnnCast(p, s, e, t),
            )
        };
        ok(w, cast(x, y));
        ok(w, cast(y, z));
        let expected = rounded(&all, dtype);
        let same = |a: &[f64], b: &[f64]| {
            a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()))
        };
        for found in [w.read(y), w.read(z)] {
            if let Some(i) = same(&found, &expected) {
                panic!("{} becomes {}, not {}", all[i], found[i], expected[i]);
            }
        }
    });
}

/// Columns of a wider tensor, both ways.
#[test]
fn casts_of_views() {
    with(&HALVES, |w, dtype| {
        let ((x, numbers), back) = (random(w, &[4, 96], dtype, 5), w.empty(&[4, 96], dtype));
        let narrow = w.empty(&[4, 2, 16], F32);
        let dims = [4, 2, 16];
        let view = |t: T| w.view(t.at, &dims, Some(&[96, 16, 1]), 48, &[4, 96], dtype);
        let (from, to) = (view(x), view(back));
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnCastGetWorkspaceSize(from, F32, narrow.handle, s, e),
                |p, s, e, t| w.d.aclnnCast(p, s, e, t),
            ),
        );
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnCastGetWorkspaceSize(narrow.handle, dtype, to, s, e),
                |p, s, e, t| w.d.aclnnCast(p, s, e, t),
            ),
        );
        let found = w.read(back);
        for (i, number) in numbers.iter().enumerate() {
            let inside = (48..80).contains(&(i % 96));
            assert!(if inside { found[i] == *number } else { found[i].is_nan() }, "element {i}: {}", found[i]);
        }
        for t in [from, to] {
            w.d.aclDestroyTensor(t);
        }
    });
}

fn norm(x: &[f64], gamma: &[f64]) -> Vec<f64> {
    let n = gamma.len();
    let row = |row: &[f64]| {
        let scale = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / n as f64 + 1e-5).sqrt();
        row.iter().zip(gamma).map(|(v, g)| v * scale * g).collect::<Vec<_>>()
    };
    x.chunks(n).flat_map(row).collect()
}

#[test]
fn norms() {
    with(&FLOATS, |w, dtype| {
        let ((a, x), (b, y), (g, gamma)) =
            (random(w, &[3, 2, 24], dtype, 1), random(w, &[3, 2, 24], dtype, 2), random(w, &[24], dtype, 3));
        let (out, rstd, sum) = (w.empty(&[3, 2, 24], dtype), w.empty(&[3, 2, 1], F32), w.empty(&[3, 2, 24], dtype));
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnRmsNormGetWorkspaceSize(a.handle, g.handle, 1e-5, out.handle, rstd.handle, s, e),
                |p, s, e, t| w.d.aclnnRmsNorm(p, s, e, t),
            ),
        );
        close("rms_norm", &w.read(out), &norm(&x, &gamma), dtype);
        let scales: Vec<f64> =
            x.chunks(24).map(|row| 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / 24.0 + 1e-5).sqrt()).collect();
        close("rstd", &w.read(rstd), &scales, F32);
        ok(
            w,
            w.run(
                |s, e| {
                    w.d.aclnnAddRmsNormGetWorkspaceSize(
                        a.handle,
                        b.handle,
                        g.handle,
                        1e-5,
                        out.handle,
                        rstd.handle,
                        sum.handle,
                        s,
                        e,
                    )
                },
                |p, s, e, t| w.d.aclnnAddRmsNorm(p, s, e, t),
            ),
        );
        let added = rounded(&x.iter().zip(&y).map(|(a, b)| a + b).collect::<Vec<_>>(), dtype);
        close("add_rms_norm, sum", &w.read(sum), &added, dtype);
        close("add_rms_norm", &w.read(out), &norm(&added, &gamma), dtype);
    });
}

#[test]
fn activations() {
    with(&FLOATS, |w, dtype| {
        let (a, x) = random(w, &[3, 20], dtype, 1);
        let (y, z) = (w.empty(&[3, 10], dtype), w.empty(&[3, 20], dtype));
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnSwiGluGetWorkspaceSize(a.handle, 1, y.handle, s, e),
                |p, s, e, t| w.d.aclnnSwiGlu(p, s, e, t),
            ),
        );
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnSiluGetWorkspaceSize(a.handle, z.handle, s, e),
                |p, s, e, t| w.d.aclnnSilu(p, s, e, t),
            ),
        );
        let silu = |v: f64| v / (1.0 + (-v).exp());
        let gated: Vec<f64> = x.chunks(20).flat_map(|row| (0..10).map(|i| silu(row[i]) * row[10 + i])).collect();
        close("swi_glu", &w.read(y), &gated, dtype);
        close("silu", &w.read(z), &x.iter().map(|v| silu(*v)).collect::<Vec<_>>(), dtype);
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnSoftmaxGetWorkspaceSize(a.handle, -1, z.handle, s, e),
                |p, s, e, t| w.d.aclnnSoftmax(p, s, e, t),
            ),
        );
        let shares = |row: &[f64]| {
            let sum: f64 = row.iter().map(|v| v.exp()).sum();
            row.iter().map(|v| v.exp() / sum).collect::<Vec<_>>()
        };
        close("softmax", &w.read(z), &x.chunks(20).flat_map(shares).collect::<Vec<_>>(), dtype);
    });
}

#[test]
fn gathers() {
    with(&FLOATS, |w, dtype| {
        let (table, x) = random(w, &[9, 12], dtype, 1);
        let picks = [8.0, 0.0, 3.0, 3.0];
        let (narrow, wide) = (w.tensor(&[4], I32, &picks), w.tensor(&[2, 2], I64, &picks));
        let (rows, nested) = (w.empty(&[4, 12], dtype), w.empty(&[2, 2, 12], dtype));
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnIndexSelectGetWorkspaceSize(table.handle, 0, narrow.handle, rows.handle, s, e),
                |p, s, e, t| w.d.aclnnIndexSelect(p, s, e, t),
            ),
        );
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnEmbeddingGetWorkspaceSize(table.handle, wide.handle, nested.handle, s, e),
                |p, s, e, t| w.d.aclnnEmbedding(p, s, e, t),
            ),
        );
        let expected: Vec<f64> = picks.iter().flat_map(|i| x[*i as usize * 12..][..12].to_vec()).collect();
        assert_eq!(w.read(rows), expected);
        assert_eq!(w.read(nested), expected);
    });
}

#[test]
fn largest() {
    with(&FLOATS, |w, dtype| {
        let x = w.tensor(&[2, 5], dtype, &[1.0, 3.0, -2.0, 3.0, 0.5, -4.0, -1.0, -1.0, -3.0, -2.0]);
        let (best, values, places) = (w.empty(&[2, 1], I32), w.empty(&[2, 3], dtype), w.empty(&[2, 3], I64));
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnArgMaxGetWorkspaceSize(x.handle, -1, true, best.handle, s, e),
                |p, s, e, t| w.d.aclnnArgMax(p, s, e, t),
            ),
        );
        ok(
            w,
            w.run(
                |s, e| w.d.aclnnTopkGetWorkspaceSize(x.handle, 3, -1, true, true, values.handle, places.handle, s, e),
                |p, s, e, t| w.d.aclnnTopk(p, s, e, t),
            ),
        );
        assert_eq!(w.read(best), [1.0, 1.0]);
        assert_eq!(w.read(values), [3.0, 3.0, 1.0, -1.0, -1.0, -2.0]);
        assert_eq!(w.read(places), [1.0, 3.0, 0.0, 1.0, 2.0, 4.0]);
    });
}

#[test]
fn samples() {
    with(&HALVES, |w, dtype| {
        let logits = w.tensor(&[2, 4], dtype, &[1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0]);
        let (k, p) = (w.tensor(&[2], I32, &[2.0, 3.0]), w.tensor(&[2], dtype, &[1.0, 0.5]));
        let noise = w.tensor(&[2, 4], F32, &[0.01, 0.01, 0.1, 1.0, 1.0, 0.01, 0.01, 0.01]);
        let (index, kept) = (w.empty(&[2], I64), w.empty(&[2, 4], F32));
        ok(
            w,
            w.run(
                |s, e| {
                    w.d.aclnnTopKTopPSampleGetWorkspaceSize(
                        logits.handle,
                        k.handle,
                        p.handle,
                        noise.handle,
                        1e-8,
                        true,
                        32,
                        index.handle,
                        kept.handle,
                        s,
                        e,
                    )
                },
                |p, s, e, t| w.d.aclnnTopKTopPSample(p, s, e, t),
            ),
        );
        // Row 0 keeps two, of which the noise prefers the second best; row 1's best alone reaches one half.
        assert_eq!(w.read(index), [2.0, 0.0]);
        let no = f64::NEG_INFINITY;
        assert_eq!(w.read(kept), [no, no, 3.0, 4.0, 4.0, no, no, no]);
    });
}

/// Rotation of halves by angles that repeat in both of them.
fn turned(x: &[f64], cos: &[f64], sin: &[f64], d: usize, heads: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for (i, row) in x.chunks(d).enumerate() {
        let (c, s) = (&cos[i / heads * d..][..d], &sin[i / heads * d..][..d]);
        out.extend((0..d).map(|j| row[j] * c[j] + s[j] * if j < d / 2 { -row[j + d / 2] } else { row[j - d / 2] }));
    }
    out
}

#[test]
fn rotations() {
    with(&FLOATS, |w, dtype| {
        let ((a, x), (c, cos), (s, sin)) = (
            random(w, &[1, 3, 2, 24], dtype, 1),
            random(w, &[1, 3, 1, 24], dtype, 2),
            random(w, &[1, 3, 1, 24], dtype, 3),
        );
        let out = w.empty(&[1, 3, 2, 24], dtype);
        ok(
            w,
            w.run(
                |n, e| {
                    w.d.aclnnRotaryPositionEmbeddingGetWorkspaceSize(a.handle, c.handle, s.handle, 0, out.handle, n, e)
                },
                |p, n, e, t| w.d.aclnnRotaryPositionEmbedding(p, n, e, t),
            ),
        );
        close("rotary", &w.read(out), &turned(&x, &cos, &sin, 24, 2), dtype);
        let ((q, q_x), (k, k_x)) = (random(w, &[1, 3, 2, 128], dtype, 4), random(w, &[1, 3, 1, 128], dtype, 5));
        let ((c, cos), (s, sin)) = (random(w, &[1, 3, 1, 128], dtype, 6), random(w, &[1, 3, 1, 128], dtype, 7));
        let half = World::name("half");
        ok(
            w,
            w.run(
                |n, e| {
                    w.d.aclnnApplyRotaryPosEmbV2GetWorkspaceSize(q.handle, k.handle, c.handle, s.handle, 1, half, n, e)
                },
                |p, n, e, t| w.d.aclnnApplyRotaryPosEmbV2(p, n, e, t),
            ),
        );
        close("rotary in place, queries", &w.read(q), &turned(&q_x, &cos, &sin, 128, 2), dtype);
        close("rotary in place, keys", &w.read(k), &turned(&k_x, &cos, &sin, 128, 1), dtype);
    });
}

/// Attention of each query of a batch to the keys it may see, from the numbers themselves.
fn attention(batch: &Batch, cached: &Cached, causal: bool) -> Vec<f64> {
    let [q, k, v] =
        [&cached.query_numbers, &cached.key_numbers, &cached.value_numbers].map(|x| rounded(x, batch.dtype));
    let (d, heads, kv_heads) = (DIM as usize, HEADS as usize, KV_HEADS as usize);
    let (mut out, mut row, mut first_key) = (Vec::new(), 0, 0);
    for (queries, keys) in batch.queries.iter().zip(&batch.keys) {
        for i in 0..*queries {
            let seen = if causal { keys - queries + i + 1 } else { *keys } as usize;
            for head in 0..heads {
                let group = head * kv_heads / heads;
                let at = |x: &[f64], j: usize| x[((first_key + j) * kv_heads + group) * d..][..d].to_vec();
                let query = &q[(row * heads + head) * d..][..d];
                let score = |j| query.iter().zip(at(&k, j)).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt();
                let odds: Vec<f64> = (0..seen).map(|j| score(j).exp()).collect();
                let sum: f64 = odds.iter().sum();
                out.extend((0..d).map(|c| (0..seen).map(|j| odds[j] * at(&v, j)[c]).sum::<f64>() / sum));
            }
            row += 1;
        }
        first_key += *keys as usize;
    }
    out
}

/// Prefill from nothing, a chunk behind earlier keys, and decodes; over several blocks.
#[test]
fn paged_attention() {
    with(&HALVES, |w, dtype| {
        let batch = Batch { dtype, ..Batch::new(&[5, 1, 20, 1], &[5, 300, 140, 128]) };
        let cached = Cached::new(w, &batch);
        ok(w, cached.scatter(w, &batch.slots()));
        ok(w, Call::paged(w, &batch, &cached).run(w));
        close("TND, paged", &w.read(cached.out), &attention(&batch, &cached, true), dtype);
    });
}

#[test]
fn attention_without_blocks() {
    with(&HALVES, |w, dtype| {
        let batch = Batch { dtype, ..Batch::new(&[5, 1, 20], &[5, 30, 140]) };
        let cached = Cached::new(w, &batch);
        let dims = [175, KV_HEADS, DIM];
        let call = Call {
            key: w.list(cached.key, &dims),
            value: w.list(cached.value, &dims),
            key_lengths: w.ints(&sums(&batch.keys)),
            table: null_mut(),
            block_size: 0,
            ..Call::paged(w, &batch, &cached)
        };
        ok(w, call.run(w));
        close("TND, unpaged", &w.read(cached.out), &attention(&batch, &cached, true), dtype);
    });
}

/// One query each, and several of one sequence: what is left where TND with blocks is refused.
#[test]
fn attention_of_old_versions() {
    with(&HALVES, |w, dtype| {
        w.d.option("refuse_tnd_paged", true);
        for batch in [Batch::new(&[1, 1, 1], &[1, 129, 64]), Batch::new(&[7], &[150])] {
            let batch = Batch { dtype, ..batch };
            let (decode, rows) = (batch.queries[0] == 1, batch.keys.len() as i64);
            let cached = Cached::new(w, &batch);
            ok(w, cached.scatter(w, &batch.slots()));
            assert_eq!(Call::paged(w, &batch, &cached).run(w), 161_002);
            let dims = [rows, batch.queries[0], HEADS, DIM];
            let [query, out] = [cached.query, cached.out].map(|t| w.view(t.at, &dims, None, 0, &dims, dtype));
            let mut call = Call {
                query,
                out,
                layout: "BSND",
                query_lengths: w.ints(&batch.queries),
                ..Call::paged(w, &batch, &cached)
            };
            if decode {
                (call.mask, call.sparse, call.query_lengths) = (null_mut(), 0, null_mut());
            }
            ok(w, call.run(w));
            close("BSND, paged", &w.read(cached.out), &attention(&batch, &cached, !decode), dtype);
            for t in [query, out] {
                w.d.aclDestroyTensor(t);
            }
        }
    });
}

/// A prompt of 4097 tokens takes seconds, not minutes.
#[test]
fn long_attention() {
    let w = World::lazy();
    let batch = Batch::new(&[4097], &[4097]);
    let cached = Cached::new(&w, &batch);
    ok(&w, cached.scatter(&w, &batch.slots()));
    let begin = std::time::Instant::now();
    ok(&w, Call::paged(&w, &batch, &cached).run(&w));
    let found = w.read(cached.out);
    let took = begin.elapsed();
    println!("4097 tokens in {took:?}");
    assert!(took.as_secs() < 30);
    let tail = Batch::new(&[1], &[4097]);
    let last = Cached { query_numbers: cached.query_numbers[(4096 * HEADS * DIM) as usize..].to_vec(), ..cached };
    close("the last row", &found[(4096 * HEADS * DIM) as usize..], &attention(&tail, &last, true), BF16);
    assert_eq!(w.end(), "");
}
