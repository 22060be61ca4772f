package yinian

// #include "yinian.h"
import "C"

import (
	"context"
	"log/slog"
	"sync"
	"unsafe"
)

// LevelTrace is below slog's own levels: the library's most verbose one.
const LevelTrace = slog.LevelDebug - 4

var logs struct {
	sync.Mutex
	queue C.yn_queue
	done  chan struct{} // closed when nothing reads the queue any more; nil when there is none
}

// LogTo sends the log lines of all engines of the process to a logger, those of `level` and above (each engine's log_level is a
// limit of its own); nil sends them nowhere, as at the start. When it returns, the logger before has had its last line. Not to
// be called by a logger's handler.
func LogTo(logger *slog.Logger, level slog.Level) error {
	if err := library(); err != nil {
		return err
	}
	logs.Lock()
	defer logs.Unlock()
	var queue C.yn_queue
	var done chan struct{}
	if logger != nil {
		var cErr C.yn_error
		if err := check(C.yn_queue_create(&queue, &cErr), &cErr); err != nil {
			return err
		}
	}
	if err := check(C.yn_log_to_queue(queue, logLevel(level)), nil); err != nil {
		C.yn_queue_free(queue)
		return err
	}
	if logger != nil {
		done = make(chan struct{})
		go readLog(queue, logger, done)
	}
	if logs.done != nil {
		C.yn_queue_free(logs.queue)
		<-logs.done
	}
	logs.queue, logs.done = queue, done
	return nil
}

// logLevel is the most verbose level of the library that is not below `level`.
func logLevel(level slog.Level) C.uint32_t {
	for i, of := range levels {
		if of < level {
			return C.uint32_t(i)
		}
	}
	return C.uint32_t(len(levels))
}

// levels are the library's 1 (error) to 5 (trace).
var levels = [...]slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo, slog.LevelDebug, LevelTrace}

func slogLevel(level uint16) slog.Level {
	if level >= 1 && int(level) <= len(levels) {
		return levels[level-1]
	}
	return LevelTrace
}

// readLog ends with the queue.
func readLog(queue C.yn_queue, logger *slog.Logger, done chan struct{}) {
	defer close(done)
	buf := make([]uint64, 2048)
	for {
		var used C.size_t
		switch C.yn_queue_poll(queue, unsafe.Pointer(&buf[0]), C.size_t(len(buf)*8), -1, &used) {
		case C.YN_OK:
			for event := range events(buf, used) {
				if event.kind == C.YN_EV_LOG {
					logger.Log(context.Background(), slogLevel(uint16(event.flags)), string(eventText(event)))
				}
			}
		case C.YN_E_TIMEOUT:
		default:
			return
		}
	}
}
