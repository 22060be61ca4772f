//! Every rule the scheduler promises, checked on its state between two calls. For tests: it costs far more than a step.

use crate::plan::StepPart;
use crate::sched::scheduler::{NOBODY, Scheduler};
use crate::sched::sequence::{Place, Sequence};
use std::collections::{HashMap, HashSet};

/// The first broken rule, in words.
pub fn check(s: &Scheduler) -> Result<(), String> {
    for (slot, q) in s.seqs.iter() {
        counters(s, q)?;
        place(s, slot, q)?;
    }
    blocks(s)?;
    orders(s)?;
    flights(s)?;
    sharing(s)?;
    balance(s)
}

fn counters(s: &Scheduler, q: &Sequence) -> Result<(), String> {
    let held = q.num_blocks() * s.cfg.block_size;
    let view = || format!("{:?}: done {} computed {} target {} blocks {held}", q.id, q.done, q.computed, q.target());
    ensure(q.done <= q.computed && q.computed <= held, view)?;
    ensure(q.num_blocks() as usize == q.rest.blocks.len(), view)?;
    ensure(q.finish.is_some() || q.computed <= q.target(), view)?;
    ensure(q.finish.is_some() || q.tokens.len() - q.prompt_len <= q.limit.min(q.rest.stop.max_tokens()), view)?;
    ensure(q.rest.scored < q.prompt_len && (q.pending == 0 || q.inflight > 0 || q.late.is_some()), view)?;
    ensure(q.late.is_none() || q.masked && q.pending == 1 && (q.inflight > 0 || !q.supplied), view)?;
    ensure(q.lead == u32::MAX || q.generated() <= q.lead.max(1) || q.finish.is_some(), view)?;
    let open = u32::from(q.late.is_some());
    ensure(q.inflight > 0 || u32::from(q.pending) == open && q.computed == q.done + open, view)?;
    ensure(q.inflight as usize <= s.inflight.len(), view)
}

/// What a sequence may hold where it stands.
fn place(s: &Scheduler, slot: u32, q: &Sequence) -> Result<(), String> {
    let queued = s.waiting.contains(&(q.rest.rank, slot));
    let runs = s.running.contains(&(q.rest.rank, slot));
    let leaves = s.leaving.contains(&slot);
    let view = || format!("{:?} is {:?}: queued {queued}, in order {runs}, leaving {leaves}", q.id, q.place);
    match q.place {
        Place::Waiting => {
            ensure(q.rest.blocks.is_empty() && q.inflight == 0 && q.computed == 0, || {
                format!("{:?} waits and holds", q.id)
            })?;
            ensure(!runs && !leaves && q.finish.is_none(), view)?;
            ensure(queued == (!q.is_held() && q.rest.refusal.is_none()), view)
        }
        Place::Running => ensure(runs && !queued && !leaves && q.finish.is_none() && !q.rest.blocks.is_empty(), view),
        Place::Leaving => ensure(leaves && !queued && !runs && q.inflight > 0, view),
    }
}

fn blocks(s: &Scheduler) -> Result<(), String> {
    let list = s.pool.free_list();
    let free: HashSet<_> = list.iter().copied().collect();
    ensure(free.len() == list.len() && list.len() == s.pool.num_free() as usize, || {
        "the free list has a cycle".into()
    })?;
    let mut holders: HashMap<_, u32> = HashMap::new();
    for (_, q) in s.seqs.iter() {
        let mut own = HashSet::new();
        for &b in &q.rest.blocks {
            *holders.entry(b).or_default() += 1;
            ensure(own.insert(b), || format!("{b:?} twice in {:?}", q.id))?;
        }
    }
    let (have, all) = (free.len() + holders.len(), s.pool.num_blocks() as usize);
    ensure(have == all, || format!("{} free and {} held of {all} blocks", free.len(), holders.len()))?;
    for (&b, &n) in &holders {
        ensure(!free.contains(&b), || format!("{b:?} is free and held"))?;
        ensure(s.pool.refs(b) == n, || format!("{b:?} counts {} holders and has {n}", s.pool.refs(b)))?;
    }
    ensure(s.pool.num_returning() == s.pool.count_returning(), || "returning blocks are miscounted".into())?;
    ensure(s.prefix.index_is_exact(), || "index and published blocks differ".into())
}

fn orders(s: &Scheduler) -> Result<(), String> {
    ensure(s.vacated == 0 && s.running.iter().all(|r| r.1 != NOBODY), || "the running order was not swept".into())?;
    ensure(s.running.windows(2).all(|w| w[0].0 < w[1].0), || "the running order is not sorted".into())?;
    let with_rows = || s.seqs.iter().filter(|(_, q)| !q.rest.blocks.is_empty()).map(|(_, q)| q.row);
    let rows: HashSet<_> = s.rows.iter().copied().chain(with_rows()).collect();
    ensure(rows.len() == s.cfg.max_seqs && s.rows.len() + with_rows().count() == s.cfg.max_seqs, || {
        format!("{} rows of {} are free and {} are held", s.rows.len(), s.cfg.max_seqs, with_rows().count())
    })
}

fn flights(s: &Scheduler) -> Result<(), String> {
    let mut mentions: HashMap<u32, u32> = HashMap::new();
    for f in &s.inflight {
        let tokens: u32 = f.entries.iter().map(|e| e.end - e.start).sum();
        let late = f.part == StepPart::Late;
        ensure(late || tokens as usize <= s.cfg.max_tokens, || format!("{:?} runs {tokens} tokens", f.id))?;
        ensure(f.entries.len() <= s.cfg.max_seqs && !f.entries.is_empty(), || format!("{:?} is empty or wide", f.id))?;
        ensure(s.keeps_bound(f), || format!("the prompts of {:?} cost more than its decodes allow", f.id))?;
        let mut written = HashSet::new();
        for e in &f.entries {
            *mentions.entry(e.slot).or_default() += 1;
            let Some((_, q)) = s.seqs.iter().find(|(slot, _)| *slot == e.slot) else {
                return Err(format!("{:?} mentions a sequence that is gone", f.id));
            };
            ensure(e.start < e.end, || format!("{:?} has an empty entry", f.id))?;
            let range = (e.start / s.cfg.block_size) as usize..e.end.div_ceil(s.cfg.block_size) as usize;
            let Some(table) = q.rest.blocks.get(range) else {
                return Err(format!("{:?} was freed under {:?}", q.id, f.id));
            };
            // A late part writes to no block.
            for &b in table.iter().filter(|_| !late) {
                ensure(written.insert(b) && s.pool.refs(b) == 1, || format!("{:?} writes to shared {b:?}", f.id))?;
            }
        }
    }
    for (slot, q) in s.seqs.iter() {
        let n = mentions.get(&slot).copied().unwrap_or(0);
        ensure(u32::from(q.inflight) == n, || format!("{:?} counts {} steps, {n} mention it", q.id, q.inflight))?;
    }
    Ok(())
}

/// Whoever is waited for runs and has work, or has done it and is about to publish it, so nobody waits for ever.
fn sharing(s: &Scheduler) -> Result<(), String> {
    for (hash, slot) in s.prefix.announcements() {
        let publisher = s.seqs.iter().find(|(i, _)| *i == slot);
        let works = publisher.is_some_and(|(_, q)| {
            q.place == Place::Running
                && (q.todo() > 0 || q.inflight > 0 || q.late.is_some() || s.full.contains(&slot))
                && q.rest.chain.iter().skip(q.published as usize).any(|h| *h == hash)
        });
        ensure(works, || format!("slot {slot} announced {hash:x} and will not compute it"))?;
    }
    Ok(())
}

/// Every token planned or found in the cache is computed now, was computed by one that ended, or was lost to a counted
/// preemption or failure: no work is done twice for another reason.
fn balance(s: &Scheduler) -> Result<(), String> {
    let alive: u64 = s.seqs.iter().map(|(_, q)| u64::from(q.computed)).sum();
    let (won, spent) = (s.stats.planned_tokens + s.stats.hit_tokens, alive + s.retired_tokens + s.stats.lost_tokens);
    ensure(won == spent, || format!("{won} tokens planned or cached, {spent} accounted for"))
}

fn ensure(ok: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(why()) }
}
