// What an NPU does with this library, as one JSON file: run.sh builds and runs it, ascend/tests/on_device.md says what
// is in the file.
//
//   selftest --root CHECKOUT --out FILE [--device ascend[:N]] [--library-dir DIR] [--kernels TEXT] [--ranks N] [--short]
//
// Exit status: 0 all agrees, 1 something does not (the file says what), 2 the file could not be written.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "json.hpp"
#include "yinian.hpp"

namespace fs = std::filesystem;
using selftest::List;
using selftest::Object;
using selftest::quoted;
using Ids = std::vector<uint32_t>;

namespace {

// Logprobs this near are a tie, which roundings decide; of greedy tokens only.
constexpr float TIE = 0.12f;

struct Options {
  fs::path root, out;
  std::string device = "ascend", library_dir, kernels = "not told", ranks;
  bool quick = false;
};

// Of engines of small models, so that several find room beside each other.
const std::string SMALL_CACHE = "67108864";

void say(const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string config(const Options& options, const std::string& device, const fs::path& model, const Object& more) {
  Object config = more;
  config.put("model", quoted(model.string())).put("device", quoted(device)).put("log_level", "\"warn\"");
  config.put("tokenizer", quoted((options.root / "examples/demo_model").string()));
  if (!options.library_dir.empty() && device != "cpu") config.put("device_library_dir", quoted(options.library_dir));
  return config.text();
}

// What an engine made of a prompt: tokens, and the most probable ones beside each.
struct Answer {
  Ids tokens;
  std::vector<std::vector<yn_logprob>> logprobs;
};

Answer ask(const yinian::Engine& engine, const Ids& prompt, uint32_t tokens) {
  auto request = yinian::Request::tokens(prompt).max_tokens(tokens).temperature(0).logprobs(20).flags(YN_REQ_IGNORE_EOS);
  const yinian::Completion end = engine.generate(request.output(YN_OUT_TOKENS));
  Answer answer;
  answer.tokens = end.choices[0].tokens;
  for (size_t i = 0; i < answer.tokens.size(); i++) {
    const yinian::Logprobs of = end.choices[0].logprobs_of(i);
    answer.logprobs.emplace_back(of.begin(), of.end());
  }
  return answer;
}

// Greedy tokens against those expected. They agree as far as they are equal, and at the first that is not when the expected one
// was as probable: from there on both tell stories of their own.
Object compare(const std::string& name, const Answer& got, const Ids& expected, bool& agrees) {
  size_t same = 0;
  while (same < got.tokens.size() && same < expected.size() && got.tokens[same] == expected[same]) same++;
  Object told;
  told.put("case", quoted(name)).put("tokens", std::to_string(expected.size())).put("equal", std::to_string(same));
  agrees = same == expected.size() && got.tokens.size() == same;
  if (!agrees && same < expected.size() && same < got.logprobs.size()) {
    float gap = INFINITY;
    for (const yn_logprob& p : got.logprobs[same]) {
      if (p.token == expected[same]) gap = got.logprobs[same][0].logprob - p.logprob;
    }
    told.put("expected", std::to_string(expected[same])).put("got", std::to_string(got.tokens[same]));
    told.put("gap", selftest::number(gap));
    agrees = gap <= TIE;
    told.put("tie", agrees ? "true" : "false");
  }
  return told.put("agrees", agrees ? "true" : "false");
}

// The demo model in its own bfloat16 against the reference implementation's tokens, with prompts as they come, and once more
// from the prefix cache.
List golden(const Options& options, const yinian::Engine& engine, size_t& wrong) {
  const std::string text = read(options.root / "tests/golden/demo.json");
  List cases;
  for (size_t at = 0, i = 0; (at = text.find("\"prompt\"", at)) != std::string::npos; i++) {
    const Ids prompt = selftest::numbers(text, at), expected = selftest::numbers(text, at = text.find("\"greedy\"", at));
    for (const char* how : {"", ", again"}) {
      bool agrees = false;
      const Answer got = ask(engine, prompt, uint32_t(expected.size()));
      cases.add(compare("demo_model, prompt " + std::to_string(i) + how, got, expected, agrees));
      wrong += agrees ? 0 : 1;
    }
  }
  return cases;
}

// The same over several NPUs.
List ranks(const Options& options, size_t& wrong) {
  try {
    const Object several = Object().put("tensor_parallel_size", options.ranks).put("kv_cache_bytes", SMALL_CACHE);
    const auto engine = yinian::Engine::open(config(options, options.device, options.root / "examples/demo_model", several));
    return golden(options, engine, wrong);
  } catch (const std::exception& e) {
    List told;
    told.add(Object().put("case", quoted(options.ranks + " ranks")).put("agrees", "false").put("error", quoted(e.what())));
    wrong++;
    return told;
  }
}

// A copy of a golden model's config with weights in another dtype, which are random then: the same ones on every device.
fs::path in_dtype(const fs::path& model, const std::string& dtype, const fs::path& to) {
  fs::create_directories(to);
  std::string text = read(model / "config.json");
  const std::string from = "\"float32\"";
  const size_t at = text.find(from);
  if (at == std::string::npos) throw std::runtime_error(model.string() + " is not in float32");
  std::ofstream(to / "config.json") << text.replace(at, from.size(), quoted(dtype));
  return to;
}

// Every family in both dtypes against the CPU backend: short and long prompts, alone and at once.
List families(const Options& options, const fs::path& work, size_t& wrong) {
  List cases;
  const Object dummy = Object().put("load_format", "\"dummy\"").put("max_num_seqs", "4").put("max_num_batched_tokens", "64")
                           .put("kv_cache_bytes", SMALL_CACHE);
  for (const auto& entry : fs::directory_iterator(options.root / "tests/golden")) {
    const std::string family = entry.path().filename().string();
    if (family.rfind("tiny-", 0) != 0) continue;
    for (const std::string dtype : {"bfloat16", "float16"}) {
      if (options.quick && dtype == "float16" && family != "tiny-qwen3") continue;
      const std::string name = family + " " + dtype;
      try {
        const fs::path model = in_dtype(entry.path(), dtype, work / (family + dtype));
        const auto cpu = yinian::Engine::open(config(options, "cpu", model, dummy));
        const auto npu = yinian::Engine::open(config(options, options.device, model, dummy));
        for (const uint32_t length : {1u, 33u, 150u}) {
          Ids prompt;
          for (uint32_t i = 0; i < length; i++) prompt.push_back((i * 37 + length * 11) % 250);
          bool agrees = false;
          const Answer expected = ask(cpu, prompt, 16), got = ask(npu, prompt, 16);
          cases.add(compare(name + ", prompt of " + std::to_string(length), got, expected.tokens, agrees));
          wrong += agrees ? 0 : 1;
        }
      } catch (const std::exception& e) {
        cases.add(Object().put("case", quoted(name)).put("agrees", "false").put("error", quoted(e.what())));
        wrong++;
      }
    }
  }
  return cases;
}

// `requests` at once, each with its own prompt.
Object load(const yinian::Engine& engine, const std::string& name, uint32_t requests, uint32_t prompt, uint32_t output) {
  const auto queue = yinian::Queue::create();
  yinian::Events events;
  uint64_t first_ns = 0, start_ns = UINT64_MAX, end_ns = 0, tokens = 0;
  for (uint32_t r = 0; r < requests; r++) {
    Ids ids;
    for (uint32_t i = 0; i < prompt; i++) ids.push_back((i * 37 + r * 101 + 7) % 1900);
    auto request = yinian::Request::tokens(ids).max_tokens(output).temperature(0).flags(YN_REQ_IGNORE_EOS);
    engine.submit(request, &queue);
  }
  for (uint32_t done = 0; done < requests;) {
    if (!queue.poll(events)) continue;
    for (const yinian::Event event : events) {
      if (!event.is_done()) continue;
      if (event.status() != yinian::Status::ok) throw std::runtime_error(std::string(event.text()));
      const yn_event& e = event.raw();
      first_ns += e.t_first_ns - e.t_submit_ns;
      start_ns = std::min(start_ns, e.t_submit_ns), end_ns = std::max(end_ns, e.t_event_ns);
      tokens += e.completion_tokens, done++;
    }
  }
  const double seconds = double(end_ns - start_ns) * 1e-9;
  return Object().put("model", quoted(name)).put("requests", std::to_string(requests)).put("prompt_tokens", std::to_string(prompt))
      .put("output_tokens", std::to_string(output)).put("seconds", selftest::number(seconds))
      .put("tokens_per_second", selftest::number(double(tokens) / seconds))
      .put("mean_first_token_ms", selftest::number(double(first_ns) / requests * 1e-6));
}

// Random weights in the shape of a model of half a billion weights.
constexpr const char* HALF_BILLION = R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
  "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
  "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "hidden_act": "silu", "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "eos_token_id": 151645, "bos_token_id": 151643, "use_sliding_window": false})";

List bench(const Options& options, const yinian::Engine& demo, const fs::path& work, size_t& wrong) {
  List runs;
  const auto run = [&](const yinian::Engine& engine, const std::string& name, uint32_t requests, uint32_t prompt, uint32_t output) {
    try {
      runs.add(load(engine, name, requests, prompt, output));
    } catch (const std::exception& e) {
      runs.add(Object().put("model", quoted(name)).put("requests", std::to_string(requests)).put("error", quoted(e.what())));
      wrong++;
    }
  };
  for (const uint32_t requests : {1u, 8u}) run(demo, "demo_model", requests, 64, options.quick ? 8 : 128);
  if (options.quick) return runs;
  run(demo, "demo_model", 64, 64, 128);
  try {
    fs::create_directories(work / "half");
    std::ofstream(work / "half/config.json") << HALF_BILLION;
    const Object dummy = Object().put("load_format", "\"dummy\"").put("max_model_len", "4096").put("max_num_seqs", "64");
    const auto engine = yinian::Engine::open(config(options, options.device, work / "half", dummy));
    for (const uint32_t requests : {1u, 16u, 64u}) run(engine, "0.5B, random weights", requests, 512, 128);
  } catch (const std::exception& e) {
    runs.add(Object().put("model", quoted("0.5B, random weights")).put("error", quoted(e.what())));
    wrong++;
  }
  return runs;
}

// All of it; what fails is told and counted.
Object report(const Options& options, const fs::path& work, size_t& wrong) {
  Object told;
  told.put("format", "1").put("library", std::string(yinian::build_info())).put("device_asked_for", quoted(options.device));
  told.put("kernels", quoted(options.kernels));
  say("probes and ops");
  const fs::path ops = work / "ops.json";
  auto engine = yinian::Engine::try_open(config(options, options.device, options.root / "examples/demo_model",
                                                Object().put("self_test", quoted(ops.string())).put("kv_cache_bytes", SMALL_CACHE)));
  if (fs::exists(ops)) {
    const std::string text = read(ops);
    told.put("ops", text);
    wrong += text.find("\"disagree\": 0") == std::string::npos ? 1 : 0;
  }
  if (!engine) {
    wrong++;
    return told.put("error", quoted(engine.error().what()));
  }
  told.put("engine", engine->info());
  say("golden tokens");
  told.put("golden", golden(options, *engine, wrong).text());
  if (!options.ranks.empty()) {
    say("golden tokens on " + options.ranks + " ranks");
    told.put("ranks", ranks(options, wrong).text());
  }
  say("families");
  told.put("families", families(options, work, wrong).text());
  say("bench");
  return told.put("bench", bench(options, *engine, work, wrong).text());
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; i++) {
    const std::string name = argv[i];
    if (name == "--short") {
      options.quick = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const std::string value = argv[++i];
    if (name == "--root") options.root = value;
    else if (name == "--out") options.out = value;
    else if (name == "--device") options.device = value;
    else if (name == "--library-dir") options.library_dir = value;
    else if (name == "--kernels") options.kernels = value;
    else if (name == "--ranks" && value.find_first_not_of("0123456789") == std::string::npos) options.ranks = value;
    else return false;
  }
  return !options.root.empty() && !options.out.empty();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    say(std::string("usage: ") + argv[0] + " --root CHECKOUT --out FILE [--device NAME] [--library-dir DIR] [--kernels TEXT] [--ranks N] [--short]");
    return 2;
  }
  std::string work = (fs::temp_directory_path() / "yinian-selftest-XXXXXX").string();
  if (mkdtemp(work.data()) == nullptr) return say("cannot make a folder like " + work), 2;
  size_t wrong = 0;
  Object told;
  try {
    told = report(options, work, wrong);
  } catch (const std::exception& e) {
    wrong++;
    told.put("error", quoted(e.what()));
  }
  fs::remove_all(work);
  told.put("wrong", std::to_string(wrong)).put("passed", wrong == 0 ? "true" : "false");
  std::ofstream file(options.out);
  file << told.text() << "\n";
  file.close();
  if (!file) return say("cannot write " + options.out.string()), 2;
  say((wrong == 0 ? "all agrees: " : "something is wrong, please send the file: ") + options.out.string());
  return wrong == 0 ? 0 : 1;
}
