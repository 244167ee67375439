# ruff: noqa: N802 - jinja2's visitor names its methods after its nodes
"""Says in a chat template, in words that onnxruntime-genai 0.18 knows, what jinja2 says in others. Pure.

The engine's renderer knows a part of Jinja only. Most of what it lacks ends a chat with an error (`text.replace(…)`,
`text | title`); some of it is silently something else: for it, no text is `in` another text, so that Qwen3's template
keeps the thoughts of earlier answers, and `tools` is never none. Each is rewritten in the parsed template; both
renderers then write the same. Tried one by one with the engine (tests/integration/test_engine_jinja.py).
"""

from collections.abc import Callable, Sequence

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

# transformers gives these as None where a chat has none of them; the engine leaves them undefined.
NONE_BY_DEFAULT = frozenset({"tools", "documents"})
UNKNOWN_METHODS = frozenset((
    "casefold", "center", "count", "encode", "expandtabs", "find", "format", "index", "isalnum", "isalpha",
    "isdigit", "isdecimal", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "keys", "ljust",
    "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit",
    "splitlines", "swapcase", "translate", "upper", "values", "zfill",
))  # fmt: skip
UNKNOWN_FILTERS = frozenset((
    "batch", "capitalize", "center", "d", "filesizeformat", "first", "float", "forceescape", "format", "groupby",
    "random", "replace", "reverse", "round", "slice", "striptags", "title", "truncate", "upper", "urlencode",
    "urlize", "wordcount", "wordwrap", "xmlattr",
))  # fmt: skip
UNKNOWN_TESTS = frozenset((
    "callable", "divisibleby", "eq", "equalto", "even", "ge", "gt", "in", "le", "lower", "lt", "ne", "odd",
    "sameas", "upper",
))  # fmt: skip
COMPARISONS = {
    "eq": "eq", "equalto": "eq", "==": "eq", "ne": "ne", "!=": "ne", "gt": "gt", "greaterthan": "gt", ">": "gt",
    "ge": "gteq", ">=": "gteq", "lt": "lt", "lessthan": "lt", "<": "lt", "le": "lteq", "<=": "lteq", "in": "in",
}  # fmt: skip


def reworded(template: nodes.Template) -> bool:
    """Rewrite a parsed template in place; whether anything had to be."""
    rewording = _Rewording(_names_of_mappings(template))
    rewording.visit(template)
    return rewording.changes > 0


def unknown_words(template: nodes.Template) -> list[str]:
    """What a parsed template uses and the engine does not know, as it is written there; sorted."""
    calls = (call.node for call in template.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr))
    found = {f".{method.attr}()" for method in calls if method.attr in UNKNOWN_METHODS}
    found |= {f"| {each.name}" for each in template.find_all(nodes.Filter) if each.name in UNKNOWN_FILTERS}
    found |= {f"is {each.name}" for each in template.find_all(nodes.Test) if each.name in UNKNOWN_TESTS}
    return sorted(found)


def _names_of_mappings(template: nodes.Template) -> frozenset[str]:
    """Loop variables that hold a message, a tool or a call of one: what is `in` them is a key, not a part of a text."""
    return frozenset(
        loop.target.name
        for loop in template.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name)
        and any("message" in name.name or "tool" in name.name for name in _names(loop.iter))
    )


def _names(expression: nodes.Node) -> list[nodes.Name]:
    return [expression] if isinstance(expression, nodes.Name) else list(expression.find_all(nodes.Name))


def _filtered(value: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(value, name, list(args), [], None, None)


def _method(value: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Expr:
    return nodes.Call(nodes.Getattr(value, name, "load"), list(args), [], None, None)


def _is(value: nodes.Expr, name: str) -> nodes.Expr:
    return nodes.Test(value, name, [], [], None, None)


def _compared(left: nodes.Expr, operator: str, right: nodes.Expr) -> nodes.Expr:
    return nodes.Compare(left, [nodes.Operand(operator, right)])


def _item(value: nodes.Expr, place: int) -> nodes.Expr:
    return nodes.Getitem(value, nodes.Const(place), "load")


def _slice(value: nodes.Expr, start: int | None, stop: int | None, step: int | None = None) -> nodes.Expr:
    edges = (None if edge is None else nodes.Const(edge) for edge in (start, stop, step))
    return nodes.Getitem(value, nodes.Slice(*edges), "load")


def _parts(text: nodes.Expr, at: nodes.Expr) -> nodes.Expr:
    return _method(text, "split", at)


def _has_several(parts: nodes.Expr) -> nodes.Expr:
    return _compared(_filtered(parts, "length"), "gt", nodes.Const(1))


def _replaced(text: nodes.Expr, old: nodes.Expr, new: nodes.Expr) -> nodes.Expr:
    return _filtered(_parts(text, old), "join", new)


def _capitalized(text: nodes.Expr) -> nodes.Expr:
    # The engine's leaves the other letters as they are.
    return _method(_filtered(text, "lower"), "capitalize")


def _without_start(text: nodes.Expr, start: nodes.Expr) -> nodes.Expr:
    rest = nodes.Getitem(text, nodes.Slice(_filtered(start, "length"), None, None), "load")
    return nodes.CondExpr(_method(text, "startswith", start), rest, text)


def _without_end(text: nodes.Expr, end: nodes.Expr) -> nodes.Expr:
    stop = nodes.Sub(_filtered(text, "length"), _filtered(end, "length"))
    rest = nodes.Getitem(text, nodes.Slice(None, stop, None), "load")
    return nodes.CondExpr(_method(text, "endswith", end), rest, text)


def _count(text: nodes.Expr, part: nodes.Expr) -> nodes.Expr:
    return nodes.Sub(_filtered(_parts(text, part), "length"), nodes.Const(1))


def _place(text: nodes.Expr, part: nodes.Expr) -> nodes.Expr:
    parts = _parts(text, part)
    return nodes.CondExpr(_has_several(parts), _filtered(_item(parts, 0), "length"), nodes.Const(-1))


def _first(value: nodes.Expr) -> nodes.Expr:
    # The engine takes no single letter out of a text, only a slice.
    return nodes.CondExpr(_is(value, "string"), _slice(value, None, 1), _item(value, 0))


Rule = Callable[..., nodes.Expr]
# By name and number of arguments, beside the value itself.
METHODS: dict[tuple[str, int], Rule] = {
    ("replace", 2): _replaced,
    ("lower", 0): lambda text: _filtered(text, "lower"),
    ("capitalize", 0): _capitalized,
    ("removeprefix", 1): _without_start,
    ("removesuffix", 1): _without_end,
    ("count", 1): _count,
    ("find", 1): _place,
    ("keys", 0): lambda mapping: mapping,
}
FILTERS: dict[tuple[str, int], Rule] = {
    ("replace", 2): _replaced,
    ("capitalize", 0): _capitalized,
    ("title", 0): lambda text: _method(text, "title"),
    ("first", 0): _first,
    ("reverse", 0): lambda value: _slice(_listed(value), None, None, -1),
    ("d", 0): lambda value: _filtered(value, "default"),
    ("d", 1): lambda value, instead: _filtered(value, "default", instead),
    ("trim", 1): lambda text, letters: _method(text, "strip", letters),
}
TESTS: dict[tuple[str, int], Rule] = {
    ("odd", 0): lambda number: _compared(nodes.Mod(number, nodes.Const(2)), "eq", nodes.Const(1)),
    ("even", 0): lambda number: _compared(nodes.Mod(number, nodes.Const(2)), "eq", nodes.Const(0)),
    ("divisibleby", 1): lambda number, by: _compared(nodes.Mod(number, by), "eq", nodes.Const(0)),
}


def _listed(value: nodes.Expr) -> nodes.Expr:
    # What a filter such as selectattr gives is no list yet.
    return _filtered(value, "list") if isinstance(value, nodes.Filter) and value.name != "list" else value


class _Rewording(NodeTransformer):
    """Replaces what the engine does not know, from the innermost expressions outwards."""

    def __init__(self, mappings: frozenset[str]) -> None:
        self._mappings = mappings
        self.changes = 0

    def _by(self, rules: dict[tuple[str, int], Rule], name: str, value: nodes.Expr, given: nodes.Expr) -> nodes.Expr:
        args: Sequence[nodes.Expr] = given.args  # type: ignore[attr-defined]
        is_plain = not (given.kwargs or given.dyn_args or given.dyn_kwargs)  # type: ignore[attr-defined]
        rule = rules.get((name, len(args))) if is_plain else None
        return given if rule is None else self._changed(rule(value, *args))

    def _changed(self, node: nodes.Expr) -> nodes.Expr:
        self.changes += 1
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.node, nodes.Getattr):
            return node
        text, name = node.node.node, node.node.attr
        options = node.args[0] if name in ("startswith", "endswith") and node.args else None
        if isinstance(options, nodes.Tuple):
            found: nodes.Expr = nodes.Const(False)
            for option in reversed(options.items):
                found = nodes.Or(_method(text, name, option), found)
            return self._changed(found)
        return self._by(METHODS, name, text, node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Expr:
        self.generic_visit(node)
        return node if node.node is None else self._by(FILTERS, node.name, node.node, node)

    def visit_Test(self, node: nodes.Test) -> nodes.Expr:
        self.generic_visit(node)
        if node.name == "none" and isinstance(node.node, nodes.Name) and node.node.name in NONE_BY_DEFAULT:
            return self._changed(nodes.Or(nodes.Not(_is(node.node, "defined")), node))
        if node.name in COMPARISONS and len(node.args) == 1:
            # A test of its own in the engine only within selectattr, which names it as a text.
            return self._changed(_compared(node.node, COMPARISONS[node.name], node.args[0]))
        return self._by(TESTS, node.name, node.node, node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        self.generic_visit(node)
        left, compared = node.expr, []
        for operand in node.ops:
            compared.append(self._compared(left, operand))
            left = operand.expr
        if len(compared) > 1:
            self.changes += 1
        whole = compared[0]
        for part in compared[1:]:
            whole = nodes.And(whole, part)
        return whole

    def _compared(self, left: nodes.Expr, operand: nodes.Operand) -> nodes.Expr:
        right = operand.expr
        plain = _compared(left, operand.op, right)
        is_whole = isinstance(right, nodes.List | nodes.Tuple | nodes.Dict)
        is_mapping = isinstance(right, nodes.Name) and right.name in self._mappings
        if operand.op not in ("in", "notin") or is_whole or is_mapping:
            return plain
        in_text = nodes.And(_is(right, "string"), _has_several(_parts(right, left)))
        found = self._changed(nodes.Or(_compared(left, "in", right), in_text))
        return nodes.Not(found) if operand.op == "notin" else found

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        place = _constant(node.arg)
        call = node.node
        if not isinstance(call, nodes.Call) or not isinstance(call.node, nodes.Getattr) or len(call.args) != 2:
            return node
        name, text, (at, most) = call.node.attr, call.node.node, call.args
        if name not in ("split", "rsplit") or _constant(most) != 1 or place not in (0, 1, -1):
            return node
        return self._changed(_cut_once(_parts(text, at), text, at, (name == "rsplit", place != 0)))

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node | list[nodes.Node]:
        self.generic_visit(node)
        target, value = node.target, node.node
        if not (isinstance(target, nodes.Tuple) and isinstance(value, nodes.Tuple | nodes.List)):
            return node
        given = {name.name for name in _names(value)}
        if any(isinstance(each, nodes.Name) and each.name in given for each in target.items):
            return node
        self.changes += 1
        return [nodes.Assign(name, item) for name, item in zip(target.items, value.items, strict=False)]


def _constant(node: nodes.Node | None) -> object:
    if isinstance(node, nodes.Neg) and isinstance(node.node, nodes.Const):
        return -node.node.value
    return node.value if isinstance(node, nodes.Const) else None


def _cut_once(parts: nodes.Expr, text: nodes.Expr, at: nodes.Expr, wanted: tuple[bool, bool]) -> nodes.Expr:
    """One side of a text that is cut at its first (or last) `at`; the engine cuts at all of them only."""
    is_last, is_after = wanted
    if is_last == is_after:
        return _item(parts, -1 if is_after else 0)
    rest = _slice(parts, 1, None) if is_after else _slice(parts, None, -1)
    return nodes.CondExpr(_has_several(parts), _filtered(rest, "join", at), text)
