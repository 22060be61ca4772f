package yinian

// #include <stdlib.h>
// #include "yinian.h"
import "C"

import "unsafe"

// borrowed is a text for one call. It lies in C memory: no struct with a Go pointer inside crosses to C.
type borrowed struct{ b C.yn_bytes }

func cBytes(text []byte) borrowed {
	return borrowed{C.yn_bytes{data: (*C.uint8_t)(C.CBytes(text)), len: C.size_t(len(text))}}
}

func (t borrowed) free() { C.free(unsafe.Pointer(t.b.data)) }
