//! A model spread over ranks against the same model on one: logits close, greedy tokens equal, and within one count of
//! ranks nothing depends on chunks or company.

use super::world::{Alone, CHUNK_MOST, generate, ranks, runner};
use super::{CHUNKS, Case, bits, cases, distance, folder};
use yinian::base::Token;
use yinian::base::config::LoadFormat;
use yinian::hal::comm::{Group, LocalGroup};
use yinian::hal::registry::{DeviceOptions, open};
use yinian::model::{Shard, inspect};
use yinian::runner::ModelRunner;

/// Largest difference from one rank, over the largest magnitude of the row.
const RELATIVE: f32 = 1e-5;

/// Runs `each` on all ranks side by side, as they wait for each other; returns what rank 0 found, which all must.
fn together<T: Send + PartialEq>(group: &mut [ModelRunner], each: impl Fn(&mut ModelRunner) -> T + Sync) -> T {
    let each = &each;
    std::thread::scope(|scope| {
        let threads: Vec<_> = group.iter_mut().map(|runner| scope.spawn(move || each(runner))).collect();
        let mut found: Vec<T> = threads.into_iter().map(|t| t.join().expect("a rank")).collect();
        assert!(found.windows(2).all(|w| w[0] == w[1]), "ranks differ");
        found.swap_remove(0)
    })
}

pub(super) fn logits(group: &mut [ModelRunner], prompt: &[Token], chunk: usize) -> Vec<f32> {
    let all = together(group, |r| bits(&r.logits(prompt, chunk).expect("logits")));
    all.into_iter().map(f32::from_bits).collect()
}

pub(super) fn greedy(group: &mut [ModelRunner], cases: &[&Case], chunk: usize) -> Vec<Vec<Token>> {
    together(group, |r| {
        let mut seqs: Vec<_> = cases.iter().enumerate().map(|(i, c)| Alone::new(i as u32, &c.prompt, 0.0)).collect();
        generate(r, &mut seqs, (chunk, cases[0].greedy.len()));
        seqs.iter().map(|s| s.generated().to_vec()).collect()
    })
}

fn agrees_with_one_rank(name: &str) {
    let dir = folder(name);
    let cases = cases(&dir);
    let mut one = runner(&dir, LoadFormat::Auto);
    for count in [2, 4] {
        let mut group = ranks(&dir, count);
        let mut worst = 0.0_f32;
        for case in &cases {
            let expected = one.logits(&case.prompt, CHUNK_MOST).expect("logits");
            let found = logits(&mut group, &case.prompt, CHUNK_MOST);
            let vocab = found.len() / case.prompt.len();
            for (f, e) in found.chunks(vocab).zip(expected.chunks(vocab)) {
                worst = worst.max(distance(f, e));
            }
            for chunk in CHUNKS {
                let chunked = logits(&mut group, &case.prompt, chunk);
                assert!(bits(&found) == bits(&chunked), "{name} on {count}: chunks of {chunk} change logits");
            }
            assert_eq!(greedy(&mut group, &[case], 7), std::slice::from_ref(&case.greedy), "{name} on {count} ranks");
        }
        println!("{name} on {count} ranks: logits at most {worst:e} from one rank's");
        assert!(worst <= RELATIVE && worst > 0.0, "{name} on {count} ranks: {worst:e} apart");
        let all: Vec<&Case> = cases.iter().collect();
        let expected: Vec<_> = cases.iter().map(|c| c.greedy.clone()).collect();
        assert_eq!(greedy(&mut group, &all, 16), expected, "{name} on {count} ranks, in a batch");
    }
}

#[test]
fn plain_heads_spread_over_ranks() {
    agrees_with_one_rank("tiny-llama-mha");
}

#[test]
fn fewer_key_heads_than_ranks_are_shared() {
    agrees_with_one_rank("tiny-llama-gqa");
}

#[test]
fn biases_spread_over_ranks() {
    agrees_with_one_rank("tiny-qwen2");
    agrees_with_one_rank("tiny-llama-bias");
}

#[test]
fn head_norms_are_on_every_rank() {
    agrees_with_one_rank("tiny-qwen3");
}

#[test]
fn packed_rows_are_cut_by_heads() {
    agrees_with_one_rank("tiny-baichuan2");
}

#[test]
fn branch_norms_follow_the_sum() {
    agrees_with_one_rank("tiny-gemma2");
    agrees_with_one_rank("tiny-gemma3");
}

#[test]
fn counts_that_do_not_divide_are_refused() {
    let info = inspect(&folder("tiny-llama-mha")).expect("inspect");
    for wrong in [0, 3, 8] {
        let e = Shard::check(&info.spec, wrong).unwrap_err();
        assert!(e.message.contains("num_attention_heads") && e.message.contains("tensor_parallel_size"), "{e}");
    }
}

#[test]
fn a_rank_that_fails_frees_the_others() {
    use yinian::base::{DType, Error};
    use yinian::hal::Tensor;
    let device = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).expect("device");
    let group = LocalGroup::new(2, 4);
    let place = group.join(0, device.as_ref()).expect("join");
    let waits = std::thread::spawn(move || {
        let stream = device.stream().expect("stream");
        let x = Tensor::new(device.alloc(16).expect("alloc"), 0, 1, 4, DType::F32);
        place.all_reduce(stream.as_ref(), &x)
    });
    group.fail(&Error::internal("rank 1 has had enough"));
    let e = waits.join().expect("no panic").unwrap_err();
    assert!(e.message.contains("had enough"), "{e}");
}
