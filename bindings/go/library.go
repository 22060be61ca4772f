package yinian

// #cgo CFLAGS: -std=c99 -Wall -Wextra
// #cgo !yinian_static,!yinian_dlopen pkg-config: yinian
// #cgo !yinian_static,!yinian_dlopen LDFLAGS: -lyinian
// #cgo yinian_static pkg-config: yinian-static
// #cgo yinian_static LDFLAGS: -l:libyinian.a -lgcc_s -lutil -lrt -lpthread -lm -ldl
// #cgo yinian_dlopen LDFLAGS: -ldl
// #include "yinian.h"
import "C"

import (
	"encoding/json"
	"fmt"
	"sync"
	"unsafe"
)

// Before 1.0 each minor version of the library may change its ABI.
const abiVersion = 0x0001

// library is nil when the library is there and of the version that this package is written for.
var library = sync.OnceValue(func() error {
	if err := find(); err != nil {
		return err
	}
	if v := uint32(C.yn_version()); v>>16 != abiVersion {
		return &Error{Status: ErrUnsupported, Message: "package yinian is for libyinian 0.1, the library here is " + versionText(v)}
	}
	return nil
})

func versionText(v uint32) string { return fmt.Sprintf("%d.%d.%d", v>>24, v>>16&0xff, v>>8&0xff) }

// Version is the library's, as "0.1.0". It never blocks, but that the first call of a program built with yinian_dlopen looks
// for the library.
func Version() (string, error) {
	if err := library(); err != nil {
		return "", err
	}
	return versionText(uint32(C.yn_version())), nil
}

// BuildInfo is what the library was built with, as a JSON object: its version, and as "devices" the kinds that it has code for.
func BuildInfo() (json.RawMessage, error) {
	if err := library(); err != nil {
		return nil, err
	}
	b := C.yn_build_info()
	return copied(b.data, b.len), nil
}

// PlanMemory is what cfg would load where, in bytes, as a JSON object, before anything is loaded. It reads the model's headers.
func PlanMemory(cfg Config) (json.RawMessage, error) {
	if err := library(); err != nil {
		return nil, err
	}
	text, err := cfg.text()
	if err != nil {
		return nil, err
	}
	var out C.yn_buf
	var cErr C.yn_error
	c := cBytes(text)
	defer c.free()
	if err := check(C.yn_plan_memory(c.b, &out, &cErr), &cErr); err != nil {
		return nil, err
	}
	return taken(&out), nil
}

// taken copies what the library allocated, and frees it.
func taken(b *C.yn_buf) []byte {
	defer C.yn_buf_free(b)
	return copied(b.data, b.len)
}

func copied(data *C.uint8_t, n C.size_t) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(data)), int(n))...)
}
