//go:build !race

package yinian

const raceDetector = false
