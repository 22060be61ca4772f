// Prints what tests/bindings/host.rs asks for too. Its arguments are models.
#include <yinian.hpp>

#include <iostream>

int main(int argc, char** argv) {
  const auto request = yinian::Request::text("Once upon a time").max_tokens(48).temperature(0).flags(YN_REQ_IGNORE_EOS);
  for (int i = 1; i < argc; i++) {
    const auto engine = yinian::Engine::open("{\"model\": \"" + std::string(argv[i]) + "\", \"log_level\": \"off\"}");
    std::cout << engine.generate(request).text();
  }
}
