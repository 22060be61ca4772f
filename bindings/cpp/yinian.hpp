// Yinian for C++17: a thin, header-only layer over yinian.h. Link with -lyinian.
//
//   auto engine = yinian::Engine::open(R"({"model": "path/to/model"})");
//   auto end = engine.stream(yinian::Request::text("Once"), [](std::string_view delta) { std::cout << delta; });
//
// Many at once, on one thread:
//
//   auto dispatcher = yinian::Dispatcher::start(engine);
//   dispatcher.submit(yinian::Request::text("Once"), [](const yinian::Event& event) { use(event.text(), event.is_done()); });
//
// Each function has a `try_` twin that returns a Result and throws std::bad_alloc at most; -fno-exceptions leaves the twins.
// Handles move and do not copy. All member functions but moves, assignments and destructors may be called from any thread
// at any time, also during close(), unless they say otherwise.
//
//   yinian/engine.hpp      Engine: load, submit, stream, generate, observe, drain
//   yinian/request.hpp     Request: a builder
//   yinian/event.hpp       Event, Events: records viewed in a poll buffer
//   yinian/dispatcher.hpp  Dispatcher: many streams on one thread, its own or the host's event loop
//   yinian/queue.hpp       Queue: for hosts that poll themselves
//   yinian/tokenizer.hpp   Tokenizer: encode, decode, render chats
//   yinian/library.hpp     version, build info, memory plans, log lines
//   yinian/result.hpp      Status, Error, Result
#ifndef YINIAN_HPP
#define YINIAN_HPP

#include "yinian/dispatcher.hpp"
#include "yinian/engine.hpp"
#include "yinian/event.hpp"
#include "yinian/library.hpp"
#include "yinian/queue.hpp"
#include "yinian/request.hpp"
#include "yinian/result.hpp"
#include "yinian/tokenizer.hpp"

#endif
