//! Models whose embedding table is in host memory: the numbers of those that have it on the device.

use super::world::{Alone, CHUNK_MOST, generate, runner_placed, tiny_config};
use super::{RELATIVE, cases, distance, folder, prompt};
use std::sync::Arc;
use yinian::base::config::{LoadFormat, Placement};
use yinian::hal::Device;

/// A golden model from files, and random ones of each dtype, with two chunk lengths.
fn host_tables_give_the_same(device: &Arc<dyn Device>) {
    let name = "tiny-llama-mha";
    let (dir, cases) = (folder(name), cases(&folder(name)));
    let mut runner = runner_placed(device, &dir, LoadFormat::Auto, Placement::Host);
    let mut seqs: Vec<_> = cases.iter().enumerate().map(|(i, c)| Alone::new(i as u32, &c.prompt, 0.0)).collect();
    generate(&mut runner, &mut seqs, (16, cases[0].greedy.len()));
    for (s, case) in seqs.iter().zip(&cases) {
        assert_eq!(s.generated(), case.greedy, "{name}: prompt of {}", case.prompt.len());
    }
    for dtype in ["float32", "bfloat16", "float16"] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = tiny_config();
        config["torch_dtype"] = dtype.into();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let of = |placement| runner_placed(device, dir.path(), LoadFormat::Dummy, placement);
        let (mut host, mut own) = (of(Placement::Host), of(Placement::Device));
        let tokens = prompt(90);
        for chunk in [CHUNK_MOST, 7] {
            let (found, expected) = (host.logits(&tokens, chunk).unwrap(), own.logits(&tokens, chunk).unwrap());
            let vocab = expected.len() / tokens.len();
            let rows = found.chunks(vocab).zip(expected.chunks(vocab));
            let worst = rows.map(|(f, e)| distance(f, e)).fold(0.0, f32::max);
            println!("{dtype}, chunks of {chunk}: {worst:e} apart");
            // The same kernels on the same numbers: a table read wrongly is far away.
            assert!(worst <= RELATIVE, "{dtype}, chunks of {chunk}: {worst:e}");
        }
    }
    println!("host tables on {}: same numbers", device.caps().name);
}

#[test]
fn host_tables_give_the_same_numbers_on_the_cpu() {
    host_tables_give_the_same(&super::cpu());
}

mod gpu {
    use yinian::hal::registry::{DeviceOptions, open};

    #[test]
    fn host_tables_give_the_same_numbers() {
        match open("cuda", &DeviceOptions::default()) {
            Ok(device) => super::host_tables_give_the_same(&device),
            Err(e) => println!("left out: {e}"),
        }
    }
}
