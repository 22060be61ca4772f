package ai.yinian;

/** New output of a request: whole code points, and the tokens behind it when they were asked for. */
public record Chunk(String text, int[] tokens) {}
