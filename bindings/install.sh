#!/usr/bin/env bash
# Installs the library, its headers, what pkg-config and CMake need to find them, and the licences.
#   [PREFIX=/usr/local] [LIBDIR=lib] [DESTDIR=] bindings/install.sh [TARGET_FOLDER]
# LIBDIR is below PREFIX: lib64, lib/x86_64-linux-gnu. The library is TARGET_FOLDER/release/libyinian.so, cargo's target folder
# unless given; it is built when it is not there, and so is libyinian.a, which goes along where there is one.
# The tree may be moved as a whole. Needs binutils and python3.
set -eEuo pipefail
umask 022
fail() {
  echo "bindings/install.sh: $*" >&2
  exit 1
}
trap 'fail "line $LINENO failed: $BASH_COMMAND"' ERR

prefix=${PREFIX:-/usr/local}
[[ $prefix == /* ]] || fail "PREFIX must be an absolute path, not $prefix"
libdir=${LIBDIR:-lib}
libdir=${libdir#"$prefix"/}
[[ /$libdir/ != *//* && /$libdir/ != */../* && /$libdir/ != */./* ]] || fail "LIBDIR must be a path below PREFIX ($prefix), not $LIBDIR"
target=${1:-${CARGO_TARGET_DIR:-}}
[[ -z $target ]] || target=$(realpath -m "$target")
to=$(realpath -m "${DESTDIR:-}$prefix")
cd "$(dirname "$0")/.."
target=${target:-$PWD/target}
for tool in strip readelf python3; do
  command -v "$tool" >/dev/null || fail "$tool is needed and not there"
done

library=$target/release/libyinian.so
if [[ ! -e $library ]]; then
  CARGO_TARGET_DIR=$target "${CARGO:-cargo}" build --release --locked
fi
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
minor=${version%.*}
[[ -n $minor ]] || fail "Cargo.toml has no version"
[[ $(readelf -d "$library") == *"[libyinian.so.$minor]"* ]] || fail "$library is not of version $minor: its soname differs"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
strip --strip-unneeded -o "$work/library" "$library"
python3 bindings/third_party.py >"$work/third_party"

up=$(sed 's|[^/]*|..|g' <<<"$libdir") # from LIBDIR to PREFIX
config() { # FILE: with version and folders put in
  sed -e "s|@VERSION@|$version|g" -e "s|@MINOR@|$minor|g" -e "s|@LIBDIR@|$libdir|g" -e "s|@UP@|$up|g" "bindings/install/$1" >"$work/$1"
}
config yinian.pc
config yinian-static.pc
config yinian-config.cmake
config yinian-config-version.cmake

lib=$to/$libdir
install -d "$to"/{include/yinian,share/licenses/yinian} "$lib"/{pkgconfig,cmake/yinian}
install -m 644 include/yinian.h bindings/cpp/yinian.hpp "$to/include"
install -m 644 bindings/cpp/yinian/*.hpp "$to/include/yinian"
install -m 755 "$work/library" "$lib/libyinian.so.$version"
ln -sfn "libyinian.so.$version" "$lib/libyinian.so.$minor"
ln -sfn "libyinian.so.$minor" "$lib/libyinian.so"
install -m 644 "$work/yinian.pc" "$lib/pkgconfig"
install -m 644 "$work"/yinian-config{,-version}.cmake "$lib/cmake/yinian"
install -m 644 LICENSE "$to/share/licenses/yinian/LICENSE"
install -m 644 "$work/third_party" "$to/share/licenses/yinian/THIRD-PARTY.txt"
# The standard library's own notices, which not every installation of Rust has.
notices=$("${RUSTC:-rustc}" --print sysroot)/share/doc/rust/COPYRIGHT-library.html
[[ ! -e $notices ]] || install -m 644 "$notices" "$to/share/licenses/yinian/RUST-LIBRARY.html"

if [[ -e $target/release/libyinian.a ]]; then
  strip --strip-debug -o "$work/archive" "$target/release/libyinian.a"
  install -m 644 "$work/archive" "$lib/libyinian.a"
  install -m 644 "$work/yinian-static.pc" "$lib/pkgconfig"
else
  rm -f "$lib/libyinian.a" "$lib/pkgconfig/yinian-static.pc"
  echo "no libyinian.a: there is none in $target/release"
fi
echo "installed libyinian $version in $to"
