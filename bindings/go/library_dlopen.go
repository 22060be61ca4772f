//go:build yinian_dlopen

package yinian

// #include <stdlib.h>
// #include "library_dlopen.h"
import "C"

import (
	"os"
	"path/filepath"
	"strings"
	"unsafe"
)

const soname = "libyinian.so.0.1"

// places are where the library is looked for, in order. What has no slash is for the dynamic loader to find: LD_LIBRARY_PATH,
// the program's rpath, its cache, the system's folders.
func places() []string {
	if path := os.Getenv("YINIAN_LIBRARY"); path != "" {
		return []string{path}
	}
	var all []string
	if program, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(program); err == nil {
			program = real
		}
		dir := filepath.Dir(program)
		all = append(all, filepath.Join(dir, soname), filepath.Join(dir, "..", "lib", soname))
	}
	return append(all, soname, filepath.Join("/usr/local/lib", soname))
}

// find loads the library from the first place that has one of the right version.
func find() error {
	var tried []string
	for _, place := range places() {
		path := C.CString(place)
		var why [512]C.char
		found := C.yn_dlopen(path, abiVersion, &why[0], C.size_t(len(why)))
		C.free(unsafe.Pointer(path))
		if found == 1 {
			return nil
		}
		tried = append(tried, "  "+place+": "+strings.TrimPrefix(C.GoString(&why[0]), place+": "))
	}
	return &Error{Status: ErrNotFound, Message: "there is no " + soname + " to load. Searched:\n" + strings.Join(tried, "\n") +
		"\nInstall the library, or name its file in the environment variable YINIAN_LIBRARY."}
}
