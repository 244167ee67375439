"""Writes a parsed Jinja template as text again, with nothing between its tags. Pure.

All text that the template writes stands in `{{ "…" }}`, so that it means the same whatever is trimmed around tags.
"""

from collections.abc import Iterator

from jinja2 import nodes

OPERATORS = {
    "eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in",
}  # fmt: skip
ARITHMETIC = {
    nodes.Add: "+", nodes.Sub: "-", nodes.Mul: "*", nodes.Div: "/", nodes.FloorDiv: "//", nodes.Mod: "%",
    nodes.Pow: "**", nodes.And: "and", nodes.Or: "or",
}  # fmt: skip
ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
WORDS = {True: "true", False: "false", None: "none"}


class NotWritable(Exception):
    """The template holds something that is not written here; its argument names it."""


def written(template: nodes.Template) -> str:
    """The template as text.

    Raises:
        NotWritable: it holds blocks, imports, calls with `*args` and the like, which no chat template needs.
    """
    return "".join(part for node in template.body for part in _statement(node))


def quoted(text: str) -> str:
    """A text as both renderers read it: the engine knows no other escapes than these."""
    return f'"{text.translate(ESCAPED)}"'


def _statement(node: nodes.Node) -> Iterator[str]:
    match node:
        case nodes.Output():
            for part in node.nodes:
                yield f"{{{{ {_expression(part)} }}}}"
        case nodes.If():
            yield from _if(node)
        case nodes.For() if not node.recursive:
            only = f" if {_expression(node.test)}" if node.test else ""
            yield f"{{% for {_target(node.target)} in {_expression(node.iter)}{only} %}}"
            yield from _body(node.body)
            if node.else_:
                yield "{% else %}"
                yield from _body(node.else_)
            yield "{% endfor %}"
        case nodes.Assign():
            yield f"{{% set {_target(node.target)} = {_expression(node.node)} %}}"
        case nodes.AssignBlock() if node.filter is None:
            yield f"{{% set {_target(node.target)} %}}"
            yield from _body(node.body)
            yield "{% endset %}"
        case nodes.Macro():
            yield f"{{% macro {node.name}({_parameters(node)}) %}}"
            yield from _body(node.body)
            yield "{% endmacro %}"
        case nodes.Break() | nodes.Continue():
            yield f"{{% {type(node).__name__.lower()} %}}"
        case _:
            raise NotWritable(type(node).__name__)


def _body(body: list[nodes.Node]) -> Iterator[str]:
    for node in body:
        yield from _statement(node)


def _if(node: nodes.If) -> Iterator[str]:
    for word, branch in [("if", node), *(("elif", each) for each in node.elif_)]:
        yield f"{{% {word} {_expression(branch.test)} %}}"
        yield from _body(branch.body)
    if node.else_:
        yield "{% else %}"
        yield from _body(node.else_)
    yield "{% endif %}"


def _parameters(macro: nodes.Macro) -> str:
    first_default = len(macro.args) - len(macro.defaults)
    return ", ".join(
        name.name + (f"={_expression(macro.defaults[place - first_default])}" if place >= first_default else "")
        for place, name in enumerate(macro.args)
    )


def _target(node: nodes.Node) -> str:
    match node:
        case nodes.Name():
            return str(node.name)
        case nodes.NSRef():
            return f"{node.name}.{node.attr}"
        case nodes.Tuple():
            return ", ".join(map(_target, node.items))
    raise NotWritable(type(node).__name__)


def _expression(node: nodes.Node) -> str:
    """An expression; what is made of several parts stands in parentheses."""
    match node:
        case nodes.Const():
            return _constant(node.value)
        case nodes.Name():
            return str(node.name)
        case nodes.BinExpr() if operator := ARITHMETIC.get(type(node)):
            return f"({_expression(node.left)} {operator} {_expression(node.right)})"
        case nodes.Compare():
            compared = (f" {OPERATORS[operand.op]} {_expression(operand.expr)}" for operand in node.ops)
            return f"({_expression(node.expr)}{''.join(compared)})"
        case nodes.Not():
            return f"(not {_expression(node.node)})"
        case nodes.Neg():
            return f"-{_expression(node.node)}"
        case nodes.Concat():
            return f"({' ~ '.join(map(_expression, node.nodes))})"
        case nodes.CondExpr():
            otherwise = f" else {_expression(node.expr2)}" if node.expr2 else ""
            return f"({_expression(node.expr1)} if {_expression(node.test)}{otherwise})"
        case nodes.TemplateData():
            return quoted(node.data)
    return _of_a_value(node)


def _of_a_value(node: nodes.Node) -> str:
    match node:
        case nodes.Getattr():
            return f"{_expression(node.node)}.{node.attr}"
        case nodes.Getitem():
            return f"{_expression(node.node)}[{_place(node.arg)}]"
        case nodes.Call():
            return f"{_expression(node.node)}({_arguments(node)})"
        case nodes.Filter() if node.node is not None:
            return f"({_expression(node.node)} | {node.name}{_in_parentheses(node)})"
        case nodes.Test():
            return f"({_expression(node.node)} is {node.name}{_in_parentheses(node)})"
        case nodes.List():
            return f"[{', '.join(map(_expression, node.items))}]"
        case nodes.Tuple():
            return f"({', '.join(map(_expression, node.items))}{',' if len(node.items) == 1 else ''})"
        case nodes.Dict():
            pairs = (f"{_expression(pair.key)}: {_expression(pair.value)}" for pair in node.items)
            return f"{{{', '.join(pairs)}}}"
    raise NotWritable(type(node).__name__)


def _constant(value: object) -> str:
    if isinstance(value, str):
        return quoted(value)
    return WORDS[value] if value is None or isinstance(value, bool) else repr(value)


def _place(node: nodes.Node) -> str:
    if not isinstance(node, nodes.Slice):
        return _expression(node)
    edges = [_expression(edge) if edge is not None else "" for edge in (node.start, node.stop)]
    return ":".join([*edges, *([_expression(node.step)] if node.step is not None else [])])


def _in_parentheses(node: nodes.Filter | nodes.Test) -> str:
    return f"({_arguments(node)})" if node.args or node.kwargs else ""


def _arguments(node: nodes.Call | nodes.Filter | nodes.Test) -> str:
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise NotWritable("*args")
    named = (f"{keyword.key}={_expression(keyword.value)}" for keyword in node.kwargs)
    return ", ".join([*map(_expression, node.args), *named])
