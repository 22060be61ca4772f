//! Mistakes with the two phases of an op.

use super::{Case, NOTHING, Seen};
use crate::api::P;
use crate::world::{F32, T, World};
use std::ptr::null_mut;

/// A norm of one row: an op that wants a workspace.
struct Norm {
    x: T,
    gamma: T,
    y: T,
    rstd: T,
}

impl Norm {
    fn new(w: &World) -> Self {
        let row = |v: f64| w.tensor(&[1, 64], F32, &[v; 64]);
        Self {
            x: row(2.0),
            gamma: w.tensor(&[64], F32, &[1.0; 64]),
            y: w.empty(&[1, 64], F32),
            rstd: w.empty(&[1, 1], F32),
        }
    }

    /// Phase 1.
    fn plan(&self, w: &World) -> (u64, P) {
        let (mut bytes, mut executor) = (0, null_mut());
        let (x, gamma, y, rstd) = (self.x.handle, self.gamma.handle, self.y.handle, self.rstd.handle);
        assert_eq!(w.d.aclnnRmsNormGetWorkspaceSize(x, gamma, 1e-6, y, rstd, &mut bytes, &mut executor), 0);
        assert!(bytes > 0);
        (bytes, executor)
    }
}

fn executor_twice(w: &World, planted: bool) -> Seen {
    let norm = Norm::new(w);
    let (bytes, executor) = norm.plan(w);
    let workspace = w.malloc(bytes as usize);
    w.d.aclnnRmsNorm(workspace, bytes, executor, w.stream);
    let code = if planted { w.d.aclnnRmsNorm(workspace, bytes, executor, w.stream) } else { 0 };
    w.sync();
    w.d.aclrtFree(workspace);
    if code == 0 { NOTHING } else { ("aclnnRmsNorm", code) }
}

fn executor_of_another_op(w: &World, planted: bool) -> Seen {
    let norm = Norm::new(w);
    let (bytes, executor) = norm.plan(w);
    let workspace = w.malloc(bytes as usize);
    let code = match planted {
        true => w.d.aclnnSilu(workspace, bytes, executor, w.stream),
        false => w.d.aclnnRmsNorm(workspace, bytes, executor, w.stream),
    };
    w.sync();
    w.d.aclrtFree(workspace);
    if code == 0 { NOTHING } else { ("aclnnSilu", code) }
}

fn executor_never_run(w: &World, planted: bool) -> Seen {
    let norm = Norm::new(w);
    let (_, executor) = norm.plan(w);
    if !planted {
        w.d.aclSetAclOpExecutorRepeatable(executor);
        w.d.aclDestroyAclOpExecutor(executor);
    }
    let left = w.end();
    if left.is_empty() { NOTHING } else { ("yn_double_leaks", i32::from(left != "executor of aclnnRmsNorm\n")) }
}

fn executor_destroyed(w: &World, planted: bool) -> Seen {
    let norm = Norm::new(w);
    let (_, executor) = norm.plan(w);
    if !planted {
        w.d.aclSetAclOpExecutorRepeatable(executor);
    }
    match w.d.aclDestroyAclOpExecutor(executor) {
        0 => NOTHING,
        code => ("aclDestroyAclOpExecutor", code),
    }
}

fn workspace_freed_early(w: &World, planted: bool) -> Seen {
    let norm = Norm::new(w);
    let (bytes, executor) = norm.plan(w);
    let workspace = w.malloc(bytes as usize);
    w.d.aclnnRmsNorm(workspace, bytes, executor, w.stream);
    if planted {
        w.d.aclrtFree(workspace);
    }
    let code = w.sync();
    if code != 0 {
        return ("aclrtSynchronizeStream", code);
    }
    w.d.aclrtFree(workspace);
    NOTHING
}

fn workspace_too_small(w: &World, planted: bool) -> Seen {
    let norm = Norm::new(w);
    let (bytes, executor) = norm.plan(w);
    let workspace = w.malloc(bytes as usize);
    let code = w.d.aclnnRmsNorm(workspace, if planted { bytes - 1 } else { bytes }, executor, w.stream);
    w.sync();
    w.d.aclrtFree(workspace);
    if code == 0 { NOTHING } else { ("aclnnRmsNorm", code) }
}

fn workspace_of_the_host(w: &World, planted: bool) -> Seen {
    let norm = Norm::new(w);
    let (bytes, executor) = norm.plan(w);
    let workspace = w.malloc(bytes as usize);
    let mut host = vec![0u8; bytes as usize];
    let at = if planted { host.as_mut_ptr().cast() } else { workspace };
    let code = w.d.aclnnRmsNorm(at, bytes, executor, w.stream);
    w.sync();
    w.d.aclrtFree(workspace);
    if code == 0 { NOTHING } else { ("aclnnRmsNorm", code) }
}

fn workspace_on_an_operand(w: &World, planted: bool) -> Seen {
    let x = w.tensor(&[64, 64], F32, &[1.0; 4096]);
    let (gamma, y, rstd) = (w.tensor(&[64], F32, &[1.0; 64]), w.empty(&[64, 64], F32), w.empty(&[64, 1], F32));
    let (mut bytes, mut executor) = (0, null_mut());
    w.d.aclnnRmsNormGetWorkspaceSize(x.handle, gamma.handle, 1e-6, y.handle, rstd.handle, &mut bytes, &mut executor);
    let workspace = w.malloc(bytes as usize);
    let code = w.d.aclnnRmsNorm(if planted { x.at } else { workspace }, bytes, executor, w.stream);
    w.sync();
    w.d.aclrtFree(workspace);
    if code == 0 { NOTHING } else { ("aclnnRmsNorm", code) }
}

fn tensor_destroyed_between(w: &World, planted: bool) -> Seen {
    let norm = Norm::new(w);
    let dims = [1, 64];
    let x = w.view(norm.x.at, &dims, None, 0, &dims, F32);
    let (mut bytes, mut executor) = (0, null_mut());
    let (gamma, y, rstd) = (norm.gamma.handle, norm.y.handle, norm.rstd.handle);
    w.d.aclnnRmsNormGetWorkspaceSize(x, gamma, 1e-6, y, rstd, &mut bytes, &mut executor);
    if planted {
        w.d.aclDestroyTensor(x);
    }
    let workspace = w.malloc(bytes as usize);
    let code = w.d.aclnnRmsNorm(workspace, bytes, executor, w.stream);
    if code != 0 {
        return ("aclnnRmsNorm", code);
    }
    w.d.aclDestroyTensor(x);
    w.sync();
    w.d.aclrtFree(workspace);
    NOTHING
}

fn tensor_destroyed_twice(w: &World, planted: bool) -> Seen {
    let at = w.malloc(64);
    let t = w.view(at, &[8], None, 0, &[8], F32);
    w.d.aclDestroyTensor(t);
    let code = if planted { w.d.aclDestroyTensor(t) } else { 0 };
    w.d.aclrtFree(at);
    if code == 0 { NOTHING } else { ("aclDestroyTensor", code) }
}

/// A code that stands for no dtype.
fn unknown_dtype_code(w: &World, planted: bool) -> Seen {
    let (at, dims, strides) = (w.malloc(64), [8i64], [1i64]);
    let dtype = if planted { 5 } else { F32 };
    let t = w.d.aclCreateTensor(dims.as_ptr(), 1, dtype, strides.as_ptr(), 0, 2, dims.as_ptr(), 1, at);
    w.d.aclrtFree(at);
    if t.is_null() {
        return ("aclCreateTensor", 0);
    }
    w.d.aclDestroyTensor(t);
    NOTHING
}

fn member_of_a_list_destroyed(w: &World, planted: bool) -> Seen {
    let at = w.malloc(64);
    let t = w.view(at, &[8], None, 0, &[8], F32);
    let list = w.d.aclCreateTensorList(&raw const t, 1);
    let code = if planted { w.d.aclDestroyTensor(t) } else { 0 };
    w.d.aclDestroyTensorList(list);
    w.d.aclrtFree(at);
    if code == 0 { NOTHING } else { ("aclDestroyTensor", code) }
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "executor used twice",
        program: executor_twice,
        caught: ("aclnnRmsNorm", 561_103),
        kind: "executor-twice",
    },
    Case {
        name: "executor of another op",
        program: executor_of_another_op,
        caught: ("aclnnSilu", 561_103),
        kind: "executor-op",
    },
    Case { name: "executor never run", program: executor_never_run, caught: ("yn_double_leaks", 0), kind: "" },
    Case {
        name: "plain executor destroyed",
        program: executor_destroyed,
        caught: ("aclDestroyAclOpExecutor", 161_002),
        kind: "executor-destroy",
    },
    Case {
        name: "workspace freed early",
        program: workspace_freed_early,
        caught: ("aclrtSynchronizeStream", 507_015),
        kind: "use-after-free",
    },
    Case {
        name: "workspace too small",
        program: workspace_too_small,
        caught: ("aclnnRmsNorm", 161_002),
        kind: "workspace-small",
    },
    Case {
        name: "workspace in host memory",
        program: workspace_of_the_host,
        caught: ("aclnnRmsNorm", 161_002),
        kind: "not-device",
    },
    Case {
        name: "workspace on an operand",
        program: workspace_on_an_operand,
        caught: ("aclnnRmsNorm", 161_002),
        kind: "workspace-overlap",
    },
    Case {
        name: "tensor destroyed between the phases",
        program: tensor_destroyed_between,
        caught: ("aclnnRmsNorm", 161_001),
        kind: "tensor-destroyed",
    },
    Case {
        name: "tensor destroyed twice",
        program: tensor_destroyed_twice,
        caught: ("aclDestroyTensor", 161_001),
        kind: "destroyed-twice",
    },
    Case {
        name: "dtype code that nobody knows",
        program: unknown_dtype_code,
        caught: ("aclCreateTensor", 0),
        kind: "dtype",
    },
    Case {
        name: "member of a list destroyed",
        program: member_of_a_list_destroyed,
        caught: ("aclDestroyTensor", 161_002),
        kind: "list-member",
    },
];
