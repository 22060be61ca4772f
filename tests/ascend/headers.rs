//! The client's table and the double's definitions against the vendor's own headers, and against each other where there are
//! none. The headers come from a wheel that `tests/ascend/headers.sh` fetches; without it these tests say that they were
//! skipped, and fail where nothing is to be skipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = "2.6.0.post3";
/// Newer headers, which have the launch of kernels too; for whoever has fetched them.
const NEWER: &str = "2.14.0";
const KERNEL: &str = "YN_HAVE_KERNEL_API";
const HCCL: &str = "YN_HAVE_HCCL";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Folders of headers by version.
fn headers() -> Vec<(&'static str, PathBuf)> {
    let folder = |version: &str| root().join("target/ascend/headers").join(version);
    let there: Vec<_> = [VERSION, NEWER]
        .iter()
        .filter(|v| folder(v).join("complete").exists())
        .map(|v| (*v, folder(v).join("include")))
        .collect();
    if there.iter().all(|(version, _)| *version != VERSION) {
        println!("skipped: no headers of torch-npu {VERSION}; tests/ascend/headers.sh fetches them");
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "with CI=true nothing is skipped, but there are no headers"
        );
        return Vec::new();
    }
    there
}

fn has_launches(include: &Path) -> bool {
    let text = fs::read_to_string(include.join("third_party/acl/inc/acl/acl_rt.h")).unwrap();
    text.contains("aclrtBinaryLoadFromFile")
        || fs::read_to_string(include.join("third_party/acl/inc/acl/acl_rt_api.h")).is_ok()
}

/// Checks types only. What the compiler says, when it says no.
fn compile(file: &Path, flags: &[String]) -> Result<String, String> {
    let mut compiler = Command::new("c++");
    compiler.env("LC_ALL", "C").args(["-std=c++17", "-fsyntax-only"]).args(flags).arg(file);
    let out = compiler.output().unwrap_or_else(|e| panic!("{compiler:?}: {e}"));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() { Ok(text) } else { Err(text) }
}

fn system(include: &Path) -> Vec<String> {
    let third = include.join("third_party");
    let folders = [include.to_owned(), third.join("acl/inc"), third.join("hccl/inc")];
    folders.iter().flat_map(|folder| ["-isystem".to_owned(), folder.to_str().unwrap().to_owned()]).collect()
}

/// Names of the functions of a table by the condition they stand under.
fn functions(table: &str) -> BTreeMap<String, Vec<String>> {
    let (mut guard, mut found) = ("1", BTreeMap::<String, Vec<String>>::new());
    for line in table.lines() {
        match line.strip_prefix("#if ") {
            Some(condition) => guard = condition,
            None if line == "#endif" => guard = "1",
            None => {
                let Some((before, _)) = line
                    .strip_suffix(");")
                    .and_then(|l| l.split_once('('))
                    .filter(|_| !line.starts_with("static_assert"))
                else {
                    continue;
                };
                found.entry(guard.to_owned()).or_default().push(before.rsplit([' ', '*']).next().unwrap().to_owned());
            }
        }
    }
    found
}

/// The table as a file that includes what is there and needs each name to be declared before it is declared again.
fn source(table: &str, launches: bool, real: bool) -> String {
    let have = |guard: &str| guard == "1" || guard == HCCL || !real || (guard == KERNEL && launches);
    let mut text = String::new();
    for guard in [KERNEL, HCCL, "YN_HAVE_NNOPBASE", "YN_HAVE_ACLNN"] {
        text += &format!("#define {guard} {}\n", i32::from(have(guard)));
    }
    text += if real { "#include \"acl/acl.h\"\n#include \"hccl/hccl.h\"\n" } else { "#include \"acl_abi.h\"\n" };
    let names = functions(table).into_iter().filter(|(guard, _)| real && have(guard)).flat_map(|(_, names)| names);
    names.for_each(|name| text += &format!("static auto *const declared_{name} = &::{name};\n"));
    text + table
}

fn written(name: &str, text: &str) -> PathBuf {
    let dir = root().join("target/ascend/check");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join(name);
    fs::write(&file, text).unwrap();
    file
}

#[test]
fn the_clients_table_is_that_of_the_headers() {
    let table = yinian::hal::ascend::abi::redeclarations();
    for (version, include) in headers() {
        let launches = has_launches(&include);
        let file = written(&format!("table-{version}.cpp"), &source(&table, launches, true));
        compile(&file, &system(&include)).unwrap_or_else(|e| panic!("against {version}:\n{e}"));
        let groups = functions(&table);
        let checked: Vec<_> = ["1", HCCL].into_iter().chain(launches.then_some(KERNEL)).collect();
        let count = checked.iter().map(|g| groups[*g].len()).sum::<usize>();
        let unchecked: Vec<_> = groups
            .iter()
            .filter(|(g, _)| !checked.contains(&g.as_str()))
            .flat_map(|(_, names)| names.clone())
            .collect();
        println!("{version}: {count} functions checked, {} without a header: {}", unchecked.len(), unchecked.join(" "));
        assert!(count >= 30 && groups["1"].iter().any(|name| name == "aclrtMemcpyAsync"), "{groups:?}");
    }
}

/// One wrong parameter in each declaration, and one wrong number: none goes through.
#[test]
fn a_wrong_table_does_not_compile() {
    let table = yinian::hal::ascend::abi::redeclarations();
    let spoiled = table.replace("(void);", "();").replace("();", "(struct Wrong *);").replace('(', "(struct Wrong *, ");
    let spoiled = spoiled
        .replace("(struct Wrong *, struct Wrong *)", "(struct Wrong *)")
        .replace("static_assert(struct Wrong *, ", "static_assert(");
    for (version, include) in headers() {
        let launches = has_launches(&include);
        let file = written(&format!("wrong-{version}.cpp"), &source(&spoiled, launches, true));
        let mut flags = system(&include);
        flags.push("-fmax-errors=0".to_owned());
        let said = compile(&file, &flags).expect_err("wrong declarations compile");
        for (guard, names) in functions(&table) {
            let checked = guard == "1" || guard == HCCL || (guard == KERNEL && launches);
            for name in names.iter().filter(|_| checked) {
                assert!(
                    said.lines()
                        .any(|l| l.contains("error: conflicting declaration") && l.contains(&format!("{name}("))),
                    "{name} may be declared wrong"
                );
            }
        }
        let file = written(
            &format!("number-{version}.cpp"),
            &source(&table.replace("ACL_BF16 == 27", "ACL_BF16 == 28"), launches, true),
        );
        assert!(compile(&file, &system(&include)).unwrap_err().contains("ACL_BF16"));
        let unknown = table.replace("aclrtFreeHost(", "aclrtFreeHosts(");
        let file = written(&format!("unknown-{version}.cpp"), &source(&unknown, launches, true));
        assert!(compile(&file, &system(&include)).unwrap_err().contains("aclrtFreeHosts"));
    }
}

fn sources() -> Vec<PathBuf> {
    let dir = root().join("tests/ascend/double");
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "cpp"))
        .collect();
    found.sort();
    found
}

/// Compiles all of the double's sources with `flags`, two at a time; what the compiler says of each.
fn compile_double(flags: &[String]) -> Vec<Result<String, String>> {
    let sources = sources();
    let (left, right) = sources.split_at(sources.len() / 2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| left.iter().map(|file| compile(file, flags)).collect::<Vec<_>>());
        let mut all: Vec<_> = right.iter().map(|file| compile(file, flags)).collect();
        all.extend(other.join().unwrap());
        all
    })
}

/// The double's definitions, which the compiler checks where the headers declare them. It names those that they do not.
#[test]
fn the_doubles_definitions_are_those_of_the_headers() {
    for (version, include) in headers() {
        let mut flags = system(&include);
        flags.extend(["-DREAL_HEADERS", "-Wmissing-declarations"].map(str::to_owned));
        flags.extend(has_launches(&include).then(|| "-DREAL_KERNEL_LAUNCH".to_owned()));
        let mut unchecked = Vec::new();
        for said in compile_double(&flags) {
            let said = said.unwrap_or_else(|e| panic!("the double against {version}:\n{e}"));
            let name = |l: &str| {
                l.split("no previous declaration for")
                    .nth(1)?
                    .split('(')
                    .next()?
                    .rsplit([' ', '*'])
                    .next()
                    .map(str::to_owned)
            };
            unchecked.extend(said.lines().filter_map(name).filter(|n| n.starts_with("acl") || n.starts_with("Hccl")));
        }
        let other = |name: &String| {
            let nnopbase = ["aclCreate", "aclDestroy", "aclSet"].iter().any(|start| name.starts_with(start));
            let launch =
                ["aclrtBinary", "aclrtKernelArgs", "aclrtLaunchKernel"].iter().any(|start| name.starts_with(start));
            !name.starts_with("aclnn") && !nnopbase && (!launch || has_launches(&include))
        };
        let unexpected: Vec<_> = unchecked.iter().filter(|n| other(n)).collect();
        println!("{version}: definitions without a header: {}", unchecked.join(" "));
        assert!(unexpected.is_empty(), "{version} declares no {unexpected:?}");
    }
}

/// Where there are no headers, client and double were at least written down twice: the whole table is declared in front of the
/// double's definitions.
#[test]
fn client_and_double_agree() {
    let table = yinian::hal::ascend::abi::redeclarations();
    let file = written("table.h", &source(&table, true, false));
    let include = |path: &Path| vec!["-I".to_owned(), path.to_str().unwrap().to_owned()];
    let flags = |file: &Path| {
        [include(&root().join("tests/ascend/double")), vec!["-include".to_owned(), file.to_str().unwrap().to_owned()]]
            .concat()
    };
    for said in compile_double(&flags(&file)) {
        said.unwrap_or_else(|e| panic!("client and double differ:\n{e}"));
    }
    let library = crate::api::build().join("libascendcl.so");
    let names = Command::new("nm").args(["-D", "--defined-only"]).arg(library).output().unwrap();
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    for name in functions(&table).into_values().flatten() {
        assert!(names.lines().any(|l| l.ends_with(&format!(" T {name}"))), "the double has no {name}");
    }
    let wrong = table.replace(
        "aclnnSwiGluGetWorkspaceSize(aclTensor const *, int64_t,",
        "aclnnSwiGluGetWorkspaceSize(aclTensor const *, int32_t,",
    );
    assert_ne!(wrong, table);
    let file = written("wrong.h", &source(&wrong, true, false));
    let said = compile(&root().join("tests/ascend/double/ops_plain.cpp"), &flags(&file));
    assert!(said.unwrap_err().contains("aclnnSwiGluGetWorkspaceSize"));
}
