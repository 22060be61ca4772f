package ai.yinian;

final class SoakTest {
    private SoakTest() {}
}
