"""What `tests/test_layout.py` measures: a source text goes in, complaints come out.

Each check is a pure function from source to a list of one-line complaints. Nothing here
knows of Flowrra, so that the checks can be tried on small texts of their own.
"""

import ast
import graphlib
import re
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Function = ast.FunctionDef | ast.AsyncFunctionDef

# ---------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------


def line_count(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def long_functions(source: str, *, lines: int) -> list[str]:
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))
    return [
        f"line {node.lineno}: {node.name} has {line_count(node)} lines, {lines} are allowed"
        for node in functions
        if line_count(node) > lines
    ]


def large_classes(
    source: str, *, lines: int, methods: int, larger: Mapping[str, tuple[int, int]] = MappingProxyType({})
) -> list[str]:
    """The classes above the limits; `larger` has limits of their own for some, by name."""
    complaints = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        # By name, so that the overloads of a method count once.
        names = {child.name for child in node.body if isinstance(child, Function)}
        most_lines, most_methods = larger.get(node.name, (lines, methods))
        if line_count(node) > most_lines:
            complaints.append(f"line {node.lineno}: {node.name} has {line_count(node)} lines")
        if len(names) > most_methods:
            complaints.append(f"line {node.lineno}: {node.name} has {len(names)} methods")
    return complaints


# ---------------------------------------------------------------------------
# Imports
# ---------------------------------------------------------------------------


def imported_modules(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import, those inside functions too; a relative one keeps its dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, "." * node.level + (node.module or "")


def never_run(tree: ast.AST) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, for type checkers only."""
    tests = (node for node in ast.walk(tree) if isinstance(node, ast.If))
    bodies = (node.body for node in tests if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    return {node for body in bodies for statement in body for node in ast.walk(statement)}


def foreign_imports(source: str, *, types_of: str | None = None) -> list[str]:
    """Imports from outside of the standard library; those of `types_of`'s types that are never run may be."""
    tree = ast.parse(source)
    unused = never_run(tree)
    return [
        f"line {node.lineno}: {module} is not in the standard library"
        for node, module in imported_modules(tree)
        if module.partition(".")[0] not in sys.stdlib_module_names
        and not (node in unused and module.partition(".")[0] == types_of)
    ]


def import_circle(sources: Mapping[str, str]) -> list[str]:
    """The modules of one circle of imports, if there is one; imports inside functions count, those for types do not."""
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        tree = ast.parse(source)
        unused = never_run(tree)
        used = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and node not in unused)
        graph[name] = {module for node in used for module in _modules(node, sources)} & sources.keys() - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _modules(node: ast.Import | ast.ImportFrom, known: Container[str]) -> Iterator[str]:
    """What a statement imports; a name that it takes from a package may be a module of that."""
    for alias in node.names:
        name = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        yield name if name in known or isinstance(node, ast.Import) else str(node.module)


# ---------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------

BANNER = re.compile(r"^# -{20,}\n# (\d+)\. (.+)\n(?:#.*\n)*?# -{20,}$", re.MULTILINE)
MAP_HEADING = re.compile(r"^\s*the map\b", re.IGNORECASE)
MAP_ENTRY = re.compile(r"^(\d+)\. (.+)$")


@dataclass(frozen=True)
class Section:
    number: int
    title: str
    line: int

    def __str__(self) -> str:
        return f"{self.number}. {self.title}"


def sections(source: str) -> list[Section]:
    return [
        Section(int(found[1]), found[2].strip(), source.count("\n", 0, found.start()) + 1)
        for found in BANNER.finditer(source)
    ]


def numbering_gaps(source: str) -> list[str]:
    return [
        f"line {section.line}: {section} should be number {expected}"
        for expected, section in enumerate(sections(source), 1)
        if section.number != expected
    ]


def section_map(source: str) -> list[str]:
    """The entries `N. Title` under the docstring's line "The map".

    Entries stand one a line, or several with ` · ` between; two spaces end a title.
    """
    lines = iter((ast.get_docstring(ast.parse(source)) or "").splitlines())
    for line in lines:
        if MAP_HEADING.match(line):
            break
    pieces = (piece for line in lines for piece in re.split(r"\s{2,}|\s·\s", line.strip()))
    return [piece.strip() for piece in pieces if MAP_ENTRY.match(piece)]


# ---------------------------------------------------------------------------
# Names: which module-level name is used where
# ---------------------------------------------------------------------------


def bound_names(node: ast.AST) -> Iterator[str]:
    """The names that `node` binds in its own scope; what stands inside a definition is not its."""
    if isinstance(node, Function | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name
    if isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest
    for child in ast.iter_child_nodes(node):
        yield from bound_names(child)


def names_bound_by(body: list[ast.stmt]) -> frozenset[str]:
    return frozenset(name for statement in body for name in bound_names(statement))


def parameter_names(arguments: ast.arguments) -> frozenset[str]:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    return frozenset(argument.arg for argument in every)


@dataclass
class Uses(ast.NodeVisitor):
    """Collects (line, name) for each name read that no scope inside the module binds.

    Annotations are left out: they say what a thing is handed and run nothing, and a model may
    be typed with what comes later. What a function's body uses counts like any other use,
    since a reader who goes from top to bottom meets it there.
    """

    found: list[tuple[int, str]] = field(default_factory=list)
    # One entry a function around us. A class body's names are not seen by its methods.
    functions: list[frozenset[str]] = field(default_factory=list)
    class_names: frozenset[str] = frozenset()

    def visit_Name(self, node: ast.Name) -> None:
        local = node.id in self.class_names or any(node.id in names for names in self.functions)
        if isinstance(node.ctx, ast.Load) and not local:
            self.found.append((node.lineno, node.id))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node: Function) -> None:
        self.visit_all([*node.decorator_list, *self.defaults(node.args)])
        declared = (child.names for child in ast.walk(node) if isinstance(child, ast.Global))
        module_level = frozenset(name for names in declared for name in names)
        inner = parameter_names(node.args) | names_bound_by(node.body) - module_level
        self.visit_inside(inner, node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit_all(self.defaults(node.args))
        self.visit_inside(parameter_names(node.args), [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all([*node.decorator_list, *node.bases, *node.keywords])
        around, self.class_names = self.class_names, names_bound_by(node.body)
        self.visit_all(node.body)
        self.class_names = around

    def visit_inside(self, names: frozenset[str], body: list[ast.stmt] | list[ast.expr]) -> None:
        around, self.class_names = self.class_names, frozenset()
        self.functions.append(names)
        self.visit_all(body)
        self.functions.pop()
        self.class_names = around

    def visit_all(self, nodes: list[ast.stmt] | list[ast.expr] | list[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    @staticmethod
    def defaults(arguments: ast.arguments) -> list[ast.AST]:
        return [*arguments.defaults, *(value for value in arguments.kw_defaults if value)]


def definition_lines(tree: ast.Module) -> dict[str, int]:
    lines: dict[str, int] = {}
    for statement in tree.body:
        for name in bound_names(statement):
            lines.setdefault(name, statement.lineno)
    return lines


def forward_uses(source: str) -> list[tuple[str, str, int]]:
    """(section's title, name, line) for each use of a name that a later section defines."""
    tree = ast.parse(source)
    starts = sections(source)
    defined = definition_lines(tree)
    uses = Uses()
    uses.visit(tree)

    def index(line: int) -> int:
        return sum(section.line <= line for section in starts)

    return [
        (starts[index(line) - 1].title if index(line) else "the top", name, line)
        for line, name in uses.found
        if index(defined.get(name, 0)) > index(line)
    ]


# ---------------------------------------------------------------------------
# Module state
# ---------------------------------------------------------------------------

# What may be called to make a module-level value: nothing here can change afterwards,
# but for loggers and context variables, which the house allows.
HARMLESS_CALLS = frozenset(
    """
    getLogger ContextVar TypeVar ParamSpec TypeVarTuple NewType
    frozenset tuple MappingProxyType namedtuple object
    int float str bytes len timedelta datetime date
    compile Struct Path getenv partial attrgetter itemgetter JSONEncoder JSONDecoder
    replace join format SystemRandom
    """.split()  # noqa: SIM905  # as a list it would take thirty lines
)
IMMUTABLE_TYPES = ("str", "bytes", "int", "float", "bool", "frozenset")
READ_ONLY_TYPES = (*IMMUTABLE_TYPES, "Mapping", "Sequence", "Set", "AbstractSet", "Collection", "Iterable")
DISPLAYS = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp


def last_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value) | ast.Call(func=value):
            return last_name(value)
    return ""


def is_read_only(annotation: ast.expr | None) -> bool:
    """`Mapping[...]`, or `Final[Mapping[...]]`: the type checker refuses a change."""
    if isinstance(annotation, ast.Subscript) and last_name(annotation) == "Final":
        annotation = annotation.slice
    return annotation is not None and last_name(annotation) in READ_ONLY_TYPES


def frozen_classes(tree: ast.Module) -> frozenset[str]:
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any("frozen=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    )


def functions_to_constants(tree: ast.Module) -> frozenset[str]:
    """The module's own functions that say they return a text, a number or a frozenset."""
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, Function) and node.returns and last_name(node.returns) in IMMUTABLE_TYPES
    )


def makes_mutable(value: ast.expr, harmless: frozenset[str]) -> bool:
    if isinstance(value, DISPLAYS):
        return True
    if isinstance(value, ast.Call):
        # What a harmless call is given (a list for a frozenset, say) is copied or wrapped.
        return last_name(value) not in harmless
    if isinstance(value, ast.Lambda):
        return False
    if isinstance(value, ast.Subscript):
        # What is looked up with is not kept: the list in the alias `Callable[[int], str]`, say.
        return makes_mutable(value.value, harmless)
    children = (child for child in ast.iter_child_nodes(value) if isinstance(child, ast.expr))
    return any(makes_mutable(child, harmless) for child in children)


def module_assignments(tree: ast.Module) -> Iterator[tuple[ast.stmt, ast.expr, ast.expr | None]]:
    """(statement, value, annotation), those under a module-level `if`, `try` or `with` too."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Function | ast.ClassDef):
            continue
        if isinstance(node, ast.Assign):
            yield node, node.value, None
        elif isinstance(node, ast.AnnAssign) and node.value:
            yield node, node.value, node.annotation
        waiting.extend(ast.iter_child_nodes(node))


def mutable_state(source: str, *, allowed: Mapping[str, str]) -> list[str]:
    """Module-level values that can change, and `global` statements; `allowed` is name to reason."""
    tree = ast.parse(source)
    harmless = HARMLESS_CALLS | frozen_classes(tree) | functions_to_constants(tree)
    complaints = [
        f"line {statement.lineno}: {', '.join(sorted(names))} can change"
        for statement, value, annotation in module_assignments(tree)
        if makes_mutable(value, harmless) and not is_read_only(annotation)
        if (names := set(bound_names(statement)) - {"__all__", *allowed})
    ]
    rebinding = (node for node in ast.walk(tree) if isinstance(node, ast.Global))
    return complaints + [f"line {node.lineno}: global {', '.join(node.names)}" for node in rebinding]


# ---------------------------------------------------------------------------
# Versions
# ---------------------------------------------------------------------------


def source_version(source: str) -> str | None:
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    return found and found[1]


def changelog_version(changelog: str) -> str | None:
    """The topmost release; work that has no version yet stands above it as `[Unreleased]`."""
    found = re.search(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)
    return found and found[1]


def function_around(source: str, line: int) -> str:
    """The name of the innermost function that this line is in; "" outside of all."""
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, Function) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    return max(around, key=lambda node: node.lineno).name if around else ""


def defined_names(source: str) -> set[str]:
    """Classes, functions, arguments, attributes and variables that this text gives names to."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names
