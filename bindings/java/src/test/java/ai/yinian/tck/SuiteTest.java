package ai.yinian.tck;

import ai.yinian.Suite;
import java.util.Iterator;
import org.testng.annotations.BeforeSuite;
import org.testng.annotations.DataProvider;
import org.testng.annotations.Test;

/** The suite, for Maven. */
public final class SuiteTest {
    @BeforeSuite
    public void oneCarrier() {
        Suite.prepare();
    }

    @DataProvider
    public Iterator<Object[]> cases() {
        return Suite.cases().stream().map(c -> new Object[] {c}).iterator();
    }

    @Test(dataProvider = "cases")
    public void passes(Suite.Case c) throws Exception {
        c.run();
    }
}
