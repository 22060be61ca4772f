//go:build race

package yinian

// The race detector's own memory grows with what it has seen.
const raceDetector = true
