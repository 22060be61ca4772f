//! A template's source before it is compiled: limits that keep its syntax tree shallow, `generation` tags, and the calls that
//! let `values` see every container a template builds. Jinja's own lexer and parser do the reading.

use super::values::{ATTRIBUTE, BUILT, EACH, KEPT, KEPT_IN_NAMESPACE, RESERVED};
use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::machinery::{Span, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

/// Words and signs of one tag, and tags of one template; published templates have a tenth of it.
const MAX_TAG_TOKENS: usize = 4096;
const MAX_TAGS: usize = 8192;
/// Nesting of one expression. Slices, repetitions and filters count more: they may be views of what they are made of.
const MAX_EXPRESSION_DEPTH: usize = 200;
const SLICE_DEPTH: usize = 20;
const FILTER_DEPTH: usize = 5;

/// Attributes that every map has in Python, where they go before what the map holds.
const MAP_METHODS: [&str; 7] = ["clear", "copy", "items", "keys", "pop", "update", "values"];

/// As Hugging Face sets up Jinja.
pub(super) fn config() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// The source to compile: the same template, with the calls described above. Lines stay where they are.
pub(super) fn prepare(source: &str) -> Result<String, Error> {
    // Jinja knows one kind of line end.
    let source = &source.replace("\r\n", "\n").replace('\r', "\n");
    let mut edits = Vec::new();
    let mut tag = Vec::new();
    let mut tags = 0;
    for token in tokenize(source, false, config()?) {
        let (token, span) = token?;
        match token {
            Token::TemplateData(_) => {}
            Token::BlockStart | Token::VariableStart => {
                tag.clear();
                tags += 1;
                tag.push((token, span));
            }
            Token::BlockEnd | Token::VariableEnd => {
                edit_tag(&tag, span, &mut edits)?;
                tag.clear();
            }
            Token::Ident(name) if name.starts_with(RESERVED) => {
                return Err(at(span, format!("names that begin with {RESERVED:?} are reserved")));
            }
            Token::String(_) => {
                edit_escapes(source, span, &mut edits)?;
                tag.push((token, span));
            }
            token => tag.push((token, span)),
        }
        for (count, most, what) in [(tags, MAX_TAGS, "tags"), (tag.len(), MAX_TAG_TOKENS, "words and signs in one tag")]
        {
            if count > most {
                return Err(at(span, format!("too many {what}: at most {most}")));
            }
        }
    }
    let prepared = apply(source, edits);
    check(&parse(&prepared, "chat", config()?)?, Place::default())?;
    Ok(prepared)
}

fn at(span: Span, message: String) -> Error {
    Error::new(ErrorKind::SyntaxError, format!("{message} (line {} of the template)", span.start_line))
}

/// The source from `from` to `to` becomes `text`.
struct Edit {
    from: u32,
    to: u32,
    text: String,
}

impl Edit {
    fn insert(at: u32, text: impl Into<String>) -> Self {
        Self { from: at, to: at, text: text.into() }
    }
}

fn apply(source: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|e| e.from);
    let mut out = String::with_capacity(source.len() + 16 * edits.len());
    let mut done = 0;
    for edit in edits {
        out.push_str(&source[done..edit.from as usize]);
        out.push_str(&edit.text);
        done = edit.to as usize;
    }
    out.push_str(&source[done..]);
    out
}

/// Escapes of a string that Python reads in another way than the interpreter.
fn edit_escapes(source: &str, span: Span, edits: &mut Vec<Edit>) -> Result<(), Error> {
    let from = span.start_offset as usize;
    let text = &source[from..span.end_offset as usize];
    let mut rest = text.char_indices();
    while let Some((i, c)) = rest.next() {
        if c != '\\' {
            continue;
        }
        let at_byte = (from + i) as u32;
        let edit = match rest.next() {
            // Kept as it stands.
            Some((_, '/')) => Edit::insert(at_byte, "\\"),
            Some((_, 'a')) => Edit { from: at_byte, to: at_byte + 2, text: "\\x07".to_owned() },
            Some((_, 'v')) => Edit { from: at_byte, to: at_byte + 2, text: "\\x0b".to_owned() },
            Some((_, escape @ ('N' | 'U' | '\n'))) => {
                return Err(at(span, format!("the escape {:?} is not supported", format!("\\{escape}"))));
            }
            _ => continue,
        };
        edits.push(edit);
    }
    Ok(())
}

/// One tag without its end, which is at `end`.
fn edit_tag(tag: &[(Token<'_>, Span)], end: Span, edits: &mut Vec<Edit>) -> Result<(), Error> {
    let Some(((start, _), words)) = tag.split_first() else { return Ok(()) };
    let word = match (start, words.first()) {
        (Token::BlockStart, Some((Token::Ident(word), _))) => *word,
        _ => "",
    };
    // What is assigned to is no expression.
    let body = match (word, words) {
        // `generation` marks text for training; for rendering it is what it contains.
        ("generation" | "endgeneration", [(_, span)]) => {
            let text = if word == "generation" { "with" } else { "endwith" };
            edits.push(Edit { from: span.start_offset, to: span.end_offset, text: text.to_owned() });
            return Ok(());
        }
        ("set", _) => {
            let Some(assign) = find(words, |t| matches!(t, Token::Assign)) else { return Ok(()) };
            let dotted = words[..assign].iter().any(|(t, _)| matches!(t, Token::Dot));
            let hidden =
                |w: &&[(Token<'_>, Span)]| matches!(w, [(Token::Dot, _), (Token::Ident(n), _)] if n.starts_with('_'));
            if let Some([_, (name, span)]) = words[..assign].windows(2).find(hidden) {
                return Err(at(*span, format!("namespaces have no attribute {:?}", token_word(name))));
            }
            let check = if dotted { KEPT_IN_NAMESPACE } else { KEPT };
            edits.push(Edit::insert(words[assign].1.end_offset, format!("{check}((")));
            edits.push(Edit::insert(end.start_offset, "))"));
            &words[assign + 1..]
        }
        ("for", _) => {
            let Some(within) = find(words, |t| matches!(t, Token::Ident("in"))) else { return Ok(()) };
            let rest = &words[within + 1..];
            let stop = find(rest, |t| matches!(t, Token::Ident("if" | "recursive"))).map_or(end, |i| rest[i].1);
            edits.push(Edit::insert(words[within].1.end_offset, format!(" {EACH}((")));
            edits.push(Edit::insert(stop.start_offset, ")) "));
            &words[within..]
        }
        _ => words,
    };
    edit_literals(body, word, edits);
    Ok(())
}

/// The first such token outside of all brackets.
fn find(words: &[(Token<'_>, Span)], wanted: impl Fn(&Token<'_>) -> bool) -> Option<usize> {
    let mut depth = 0_i32;
    words.iter().position(|(token, _)| {
        match token {
            Token::BracketOpen | Token::ParenOpen | Token::BraceOpen => depth += 1,
            Token::BracketClose | Token::ParenClose | Token::BraceClose => depth -= 1,
            _ => {}
        }
        depth == 0 && wanted(token)
    })
}

/// An open bracket.
struct Open {
    at: u32,
    paren: bool,
    /// It begins a list, a map, or in parentheses a tuple, rather than a call or a subscript.
    literal: bool,
    commas: usize,
    /// Something in it is not constant.
    varies: bool,
}

fn edit_literals(words: &[(Token<'_>, Span)], keyword: &str, edits: &mut Vec<Edit>) {
    let mut open: Vec<Open> = Vec::new();
    let mut operand = false;
    let mut attribute = false;
    for (i, (token, span)) in words.iter().enumerate() {
        let first = i == 0 && *token_word(token) == *keyword && !keyword.is_empty();
        match token {
            Token::BracketOpen | Token::ParenOpen | Token::BraceOpen => {
                let literal = !operand || matches!(token, Token::BraceOpen);
                let paren = matches!(token, Token::ParenOpen);
                open.push(Open { at: span.start_offset, paren, literal, commas: 0, varies: !literal });
            }
            Token::BracketClose | Token::ParenClose | Token::BraceClose => {
                let Some(closed) = open.pop() else { return };
                if closed.literal && closed.varies && !(closed.paren && closed.commas == 0) {
                    edits.push(Edit::insert(closed.at, format!("{BUILT}(")));
                    edits.push(Edit::insert(span.end_offset, ")"));
                }
                if let Some(outer) = open.last_mut() {
                    outer.varies |= closed.varies;
                }
            }
            Token::Comma => {
                if let Some(inner) = open.last_mut() {
                    inner.commas += 1;
                }
            }
            Token::Ident(word) => {
                let called = matches!(words.get(i + 1), Some((Token::ParenOpen, _)));
                if attribute && !called && MAP_METHODS.contains(word) {
                    let text = format!("{ATTRIBUTE}('{word}')");
                    edits.push(Edit { from: span.start_offset, to: span.end_offset, text });
                }
                if let Some(inner) = open.last_mut() {
                    inner.varies |= !matches!(*word, "true" | "false" | "none" | "True" | "False" | "None");
                }
            }
            _ => {}
        }
        operand = match token {
            Token::Ident(word) => attribute || !(first || is_operator(word)),
            Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) => true,
            Token::BracketClose | Token::ParenClose | Token::BraceClose => true,
            _ => false,
        };
        attribute = matches!(token, Token::Dot);
    }
}

fn token_word<'a>(token: &Token<'a>) -> &'a str {
    match token {
        Token::Ident(word) => word,
        _ => "",
    }
}

fn is_operator(word: &str) -> bool {
    matches!(word, "in" | "not" | "and" | "or" | "is" | "if" | "else")
}

/// Where a statement stands.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    /// The block between here and the loop around it, that `continue` and `break` would have to leave.
    inside: Option<&'a str>,
    in_loop: bool,
}

impl<'a> Place<'a> {
    fn within(self, block: &'a str) -> Self {
        Self { inside: Some(block), ..self }
    }
}

fn check_all(body: &[Stmt<'_>], place: Place<'_>) -> Result<(), Error> {
    body.iter().try_for_each(|s| check(s, place))
}

/// Refuses what the interpreter does not survive.
fn check(stmt: &Stmt<'_>, place: Place<'_>) -> Result<(), Error> {
    let leaves = |word: &str, span: Span| match place.inside {
        Some(block) if place.in_loop => {
            Err(at(span, format!("{{% {word} %}} within {{% {block} %}} is not supported")))
        }
        _ => Ok(()),
    };
    match stmt {
        Stmt::Template(t) => check_all(&t.children, place),
        Stmt::EmitExpr(e) => depth(&e.expr, 0),
        Stmt::EmitRaw(_) => Ok(()),
        Stmt::ForLoop(f) => {
            depth(&f.iter, 0)?;
            f.filter_expr.iter().try_for_each(|e| depth(e, 0))?;
            check_all(&f.body, Place { inside: None, in_loop: true })?;
            check_all(&f.else_body, place)
        }
        Stmt::IfCond(i) => {
            depth(&i.expr, 0)?;
            check_all(&i.true_body, place)?;
            check_all(&i.false_body, place)
        }
        Stmt::WithBlock(w) => {
            w.assignments.iter().try_for_each(|(_, e)| depth(e, 0))?;
            check_all(&w.body, place.within("with"))
        }
        Stmt::Set(s) => {
            let known =
                matches!(&s.expr, Expr::Call(c) if matches!(&c.expr, Expr::Var(v) if v.id.starts_with(RESERVED)));
            if !known {
                return Err(at(s.span(), "{% set %} of this form is not supported".to_owned()));
            }
            depth(&s.expr, 0)
        }
        Stmt::SetBlock(s) => {
            s.filter.iter().try_for_each(|e| depth(e, 0))?;
            check_all(&s.body, place.within("set"))
        }
        Stmt::AutoEscape(a) => Err(at(a.span(), "{% autoescape %} is not supported".to_owned())),
        Stmt::FilterBlock(f) => {
            depth(&f.filter, 0)?;
            check_all(&f.body, place.within("filter"))
        }
        Stmt::Macro(m) => check_macro(&m.defaults, &m.body),
        Stmt::CallBlock(c) => {
            args(&c.call.args, 0)?;
            check_macro(&c.macro_decl.defaults, &c.macro_decl.body)
        }
        Stmt::Continue(s) => leaves("continue", s.span()),
        Stmt::Break(s) => leaves("break", s.span()),
        Stmt::Do(d) => args(&d.call.args, 0),
    }
}

fn check_macro(defaults: &[Expr<'_>], body: &[Stmt<'_>]) -> Result<(), Error> {
    defaults.iter().try_for_each(|e| depth(e, 0))?;
    check_all(body, Place::default())
}

/// Refuses expressions nested deeper than [`MAX_EXPRESSION_DEPTH`].
fn depth(expr: &Expr<'_>, level: usize) -> Result<(), Error> {
    if level > MAX_EXPRESSION_DEPTH {
        return Err(at(expr.span(), format!("an expression is nested deeper than {MAX_EXPRESSION_DEPTH}")));
    }
    let below = |e: &Expr<'_>| depth(e, level + 1);
    let maybe = |e: &Option<Expr<'_>>, more: usize| e.as_ref().map_or(Ok(()), |e| depth(e, level + more));
    match expr {
        Expr::Var(_) | Expr::Const(_) => Ok(()),
        Expr::Slice(s) => {
            depth(&s.expr, level + SLICE_DEPTH)?;
            [&s.start, &s.stop, &s.step].into_iter().try_for_each(|e| maybe(e, 1))
        }
        Expr::UnaryOp(o) => below(&o.expr),
        Expr::BinOp(o) => {
            let more = if matches!(o.op, BinOpKind::Mul) { SLICE_DEPTH } else { 1 };
            depth(&o.left, level + more).and_then(|()| depth(&o.right, level + more))
        }
        Expr::Compare(c) => {
            below(&c.expr)?;
            c.ops.iter().try_for_each(|o| below(&o.expr))
        }
        Expr::IfExpr(i) => {
            below(&i.test_expr)?;
            below(&i.true_expr)?;
            maybe(&i.false_expr, 1)
        }
        Expr::Filter(f) => {
            maybe(&f.expr, FILTER_DEPTH)?;
            args(&f.args, level)
        }
        Expr::Test(t) => {
            below(&t.expr)?;
            args(&t.args, level)
        }
        Expr::GetAttr(g) => below(&g.expr),
        Expr::GetItem(g) => below(&g.expr).and_then(|()| below(&g.subscript_expr)),
        Expr::Call(c) => {
            below(&c.expr)?;
            args(&c.args, level)
        }
        Expr::List(l) => l.items.iter().try_for_each(below),
        Expr::Tuple(t) => t.items.iter().try_for_each(below),
        Expr::Map(m) => m.keys.iter().chain(&m.values).try_for_each(below),
    }
}

fn args(args: &[CallArg<'_>], level: usize) -> Result<(), Error> {
    args.iter().try_for_each(|arg| match arg {
        CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => depth(e, level + 1),
    })
}
