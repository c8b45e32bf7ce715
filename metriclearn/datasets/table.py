"""The product table: one row per image, one column per property.

Every reader of this package returns one. Samplers read its product codes, the input pipeline its
paths or pixels, and the evaluation its ids, splits and roles; none of them depends on the data set.
"""

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from metriclearn.registry import did_you_mean

# The split 'catalogue': shop images that belong to every split.
SPLITS = ("train", "val", "test", "catalogue")
ROLES = ("", "train", "query", "catalogue")
TEXT_COLUMNS = ("ids", "paths", "products", "categories", "splits", "roles", "domains")
# Columns by their singular, which `where` uses.
SINGULAR = {
    "id": "ids",
    "path": "paths",
    "product": "products",
    "category": "categories",
    "split": "splits",
    "role": "roles",
    "domain": "domains",
}


_BLOCK = 1 << 16  # rows converted at a time


def one_line_errors(reader):
    """Decorator of readers of untrusted files: escapes control characters in messages."""

    @functools.wraps(reader)
    def read(*args, **kwargs):
        try:
            return reader(*args, **kwargs)
        except ValueError as error:
            message = "".join(
                c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(error)
            )
            raise ValueError(message) from None

    return read


@dataclasses.dataclass(frozen=True, eq=False)
class ProductTable:
    """Images of products; row i of every column describes image i.

    Text columns may be any sequence or array, [N] or [N, 1]. They are stored as object arrays of
    str in which equal values share memory, so that a table of millions of rows is small.

    Attributes:
      products: [N] str, the product in the image; never ''.
      paths: [N] str, the image file; '' if the pixels are in `images`.
      ids: [N] str, unique identity of the image; default: the paths.
      categories: [N] str, '' if the product has none.
      splits: [N] str, 'train' | 'val' | 'test' | 'catalogue' (shop images common to all splits).
      roles: [N] str, '' | 'train' | 'query' | 'catalogue'.
      domains: [N] str, source of the image ('consumer', 'shop'), '' if unknown.
      boxes: int32 [N, 4] as x1, y1, x2, y2 in pixels of the file as stored, before its EXIF
        orientation is applied (x2, y2 exclusive), or None. A row without a box is all zeros.
      images: uint8 [N, H, W, C] pixels in memory, or None.
      extra: further columns by name, each [N] str.

    Raises:
      ValueError: columns have different lengths, an id occurs twice, a product is empty, or a split
        or role is unknown.
    """

    products: np.ndarray
    paths: np.ndarray = None
    ids: np.ndarray = None
    categories: np.ndarray = None
    splits: np.ndarray = None
    roles: np.ndarray = None
    domains: np.ndarray = None
    boxes: np.ndarray = None
    images: np.ndarray = None
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        def put(name, value):
            object.__setattr__(self, name, value)

        count = len(self.products)
        for name in TEXT_COLUMNS:
            if name != "ids" or self.ids is not None:
                put(name, _text(name, getattr(self, name), count))
        if self.ids is None:
            put("ids", self.paths)
        put("extra", {name: _text(name, values, count) for name, values in self.extra.items()})
        if self.boxes is not None:
            put("boxes", np.asarray(self.boxes, dtype=np.int32))
            if self.boxes.shape != (count, 4):
                raise ValueError(f"boxes must be [{count}, 4], not {list(self.boxes.shape)}")
        if self.images is not None:
            put("images", np.asarray(self.images))
            if self.images.ndim != 4 or self.images.dtype != np.uint8:
                raise ValueError("images must be uint8 [N, H, W, C]")
            if len(self.images) != count:
                raise ValueError(f"images has {len(self.images)} rows, products has {count}")
        self._check_values()

    def _check_values(self):
        if (self.products == "").any():
            row = int(np.argmax(self.products == ""))
            raise ValueError(f"row {row} ({self.ids[row]!r}): the product is empty")
        # Sorting hashes takes a tenth of the memory of a set.
        hashes = np.fromiter(map(hash, self.ids.tolist()), np.int64, len(self))
        ordered = np.sort(hashes)
        first = {}
        for row in np.flatnonzero(np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]])):
            if first.setdefault(self.ids[row], row) != row:
                raise ValueError(
                    f"the id {self.ids[row]!r} occurs twice (rows {first[self.ids[row]]} and {row})"
                )
        for name, allowed in (("splits", (*SPLITS, "")), ("roles", ROLES)):
            for value in dict.fromkeys(self.column(name).tolist()):
                if value not in allowed:
                    raise ValueError(
                        f"{name}: {value!r} is not one of {', '.join(filter(None, allowed))}"
                        + did_you_mean(value, allowed)
                    )

    def __len__(self):
        return len(self.products)

    def __repr__(self):
        splits = ", ".join(
            f"{name or 'no split'} {count:,}"
            for name, count in sorted(collections.Counter(self.splits.tolist()).items())
        )
        products = len(set(self.products.tolist()))
        return f"ProductTable({len(self):,} images, {products:,} products; {splits})"

    def column(self, name: str) -> np.ndarray:
        """Returns the [N] values of a column: a field, its singular, or an extra column."""
        name = SINGULAR.get(name, name)
        if name in TEXT_COLUMNS:
            return getattr(self, name)
        if name in self.extra:
            return self.extra[name]
        known = (*SINGULAR, *self.extra)
        raise ValueError(
            f"no column {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}"
        )

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int64 [N] codes of the products: the rank of the product among this table's products."""
        return _ranks(self.products)

    @functools.cached_property
    def category_labels(self) -> np.ndarray:
        """int64 [N] codes of the categories: the rank among this table's categories."""
        return _ranks(self.categories)

    def digest(self) -> str:
        """Returns 16 hex digits that change with the images' ids, products, splits or order."""
        digest = hashlib.sha256()
        for column in (self.ids, self.products, self.splits):
            digest.update("\0".join(column.tolist()).encode(errors="surrogatepass") + b"\n")
        return digest.hexdigest()[:16]

    def select(self, rows: Sequence[int] | np.ndarray) -> "ProductTable":
        """Returns the table of the given rows.

        Args:
          rows: a boolean mask [N], or row numbers, in whose order the new table is.

        Raises:
          ValueError: the mask has another length, or a row occurs twice.
        """
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape != (len(self),):
            raise ValueError(f"a mask must be [{len(self)}], not {list(rows.shape)}")
        rows = np.arange(len(self))[rows if rows.size else rows.astype(np.int64)]
        twice = np.flatnonzero(np.bincount(rows, minlength=1) > 1)
        if twice.size:
            raise ValueError(f"the id {self.ids[twice[0]]!r} occurs twice (row {twice[0]})")
        table = object.__new__(ProductTable)  # not checked again, which would take seconds
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "extra":
                value = {name: column[rows] for name, column in value.items()}
            elif field.name == "ids" and value is self.paths:
                value = table.paths
            elif value is not None:
                value = value[rows]
            object.__setattr__(table, field.name, value)
        return table

    def where(self, **columns: str | Iterable[str]) -> "ProductTable":
        """Returns the rows whose columns have the given value, or one of the given values.

        `table.where(split="test", role="query")`, `table.where(role=("query", "catalogue"))`. Names
        are the singular of a field (split, role, product, ...) or an extra column.
        """
        mask = np.ones(len(self), dtype=bool)
        for name, wanted in columns.items():
            wanted = {wanted} if isinstance(wanted, str) else {str(value) for value in wanted}
            mask &= np.fromiter((v in wanted for v in self.column(name).tolist()), bool, len(self))
        return self.select(mask)


def _text(name, values, count):
    """A column as an object array of str, [N], in which equal values are one object."""
    if values is None:
        return np.broadcast_to(np.array("", object), count)
    if isinstance(values, list | tuple) and all(type(value) is str for value in values):
        values = np.fromiter(values, object, len(values))  # without the padding of a str array
    values = np.asarray(values)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (count,):
        raise ValueError(
            f"column {name!r} has shape {list(values.shape)}, products has {count} rows"
        )
    column, shared = np.empty(count, object), {}
    for start in range(0, count, _BLOCK):
        part = values[start : start + _BLOCK].tolist()
        if not all(type(value) is str for value in part):
            part = np.asarray(part).astype(np.str_).tolist()
        if name not in ("ids", "paths"):  # its values are all different
            part = [shared.setdefault(value, value) for value in part]
        column[start : start + _BLOCK] = part
    return column


def _ranks(column):
    """int64 [N]: the index of each value among the sorted values."""
    rank = {value: place for place, value in enumerate(sorted(set(column.tolist())))}
    return np.fromiter(map(rank.__getitem__, column.tolist()), np.int64, len(column))


def parse_conditions(text: str) -> dict[str, list[str]]:
    """Parses conditions on columns, such as `role=query,category=Fruit, fresh|Vegetables`.

    A condition is `column=value` or `column=value|value|…`. Conditions are separated by commas. A
    value may contain commas, because only a comma before another `column=` ends a condition. A
    backslash escapes a comma, bar, equals sign or backslash.

    Args:
      text: the conditions; '' for none.

    Returns:
      {column: [values]}.

    Raises:
      ValueError: a condition has no column or equals sign, or a column occurs twice.
    """
    escaped = re.sub(r"\\([\\,|=])", lambda match: chr(0xE000 + ord(match[1])), text)

    def plain(part):
        return re.sub("[\ue000-\ue0ff]", lambda match: chr(ord(match[0]) - 0xE000), part).strip()

    conditions = {}
    for condition in filter(None, re.split(r",(?=[^,|=]+=)", escaped)):
        column, equals, values = condition.partition("=")
        column = plain(column)
        if not equals or not column:
            raise ValueError(f"{plain(condition)!r} is not column=value or column=value|value")
        if column in conditions:
            raise ValueError(f"the column {column!r} has two conditions; write {column}=a|b")
        conditions[column] = [plain(value) for value in values.split("|")]
    return conditions


def select_where(table: ProductTable, text: str) -> ProductTable:
    """Returns the rows of a table that satisfy all conditions of a text; see `parse_conditions`.

    Raises:
      ValueError: a condition is malformed, a column is unknown, or a value occurs in no row.
    """
    for column, values in parse_conditions(text).items():
        known = set(table.column(column).tolist())
        for value in values:
            if value not in known:
                hint = did_you_mean(value, known)
                raise ValueError(f"{column}={value}: no row has this {column}{hint}")
        table = table.where(**{column: values})
    return table


def split_by_product(
    products: Iterable[str], fractions: Sequence[float] = (0.7, 0.1, 0.2), salt: str = ""
) -> np.ndarray:
    """Splits by product, so that test products are not in training.

    The products are ordered by the SHA-256 of their name (and of `salt`); the first `fractions[0]`
    of them are 'train', then 'val', then 'test'. The split depends only on names, not on the order
    of rows, the number of images, or the version of a random generator.

    Args:
      products: [N] str.
      fractions: three non-negative numbers (train, val, test); they are normalized.
      salt: another text gives another split.

    Returns:
      [N] str of 'train', 'val' and 'test'. A part with a positive fraction gets at least one
      product.

    Raises:
      ValueError: there are fewer products than parts.
    """
    products = np.asarray(products, dtype=object).tolist()
    names = sorted(set(products))
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or (shares < 0).any() or shares.sum() <= 0:
        raise ValueError(f"fractions must be three non-negative numbers, not {fractions!r}")
    if len(names) < np.count_nonzero(shares):
        raise ValueError(
            f"{_count(len(names), 'product')} cannot be split into train, val and test: "
            "give a split column, or more products"
        )
    names.sort(key=lambda name: hashlib.sha256(f"{salt}\0{name}".encode()).digest())
    sizes = np.maximum(np.rint(shares / shares.sum() * len(names)).astype(int), shares > 0)
    sizes[np.argmax(sizes)] += len(names) - sizes.sum()
    parts = np.repeat(["train", "val", "test"], sizes).tolist()
    part_of = dict(zip(names, parts, strict=True))
    return np.array([part_of[product] for product in products], np.str_)


def _count(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def queries_and_catalogue(
    table: ProductTable, split: str = "test"
) -> tuple[ProductTable, ProductTable]:
    """Returns the two tables of a retrieval evaluation on `split`.

    The catalogue is every row with role 'catalogue' in this split or in the split 'catalogue'. The
    queries are the split's rows with role 'query' or, if there are none, all its rows outside the
    catalogue. A split without catalogue images is evaluated leave-one-out: both tables are the
    whole split, and the evaluation excludes the query itself by its id.

    Returns:
      (queries, catalogue): two ProductTables.

    Raises:
      ValueError: the split has no query image.
    """
    shown = (table.roles == "catalogue") & np.isin(table.splits, (split, "catalogue"))
    mine = (table.splits == split) & (table.roles != "catalogue")
    asked = mine & (table.roles == "query")
    queries = table.select(asked if asked.any() else mine)
    if not len(queries):
        have = ", ".join(sorted(filter(None, set(table.splits.tolist())))) or "none"
        raise ValueError(f"no image in split {split!r} can be a query (splits: {have})")
    return queries, (table.select(shown) if shown.any() else queries)


def whole_catalogue(table: ProductTable) -> ProductTable:
    """Returns the catalogue of all splits.

    It has the images with role or split 'catalogue' or, if there are none, all except the queries.

    Raises:
      ValueError: every image is a query.
    """
    shown = (table.roles == "catalogue") | (table.splits == "catalogue")
    if not shown.any():
        shown = table.roles != "query"
    if not shown.any():
        raise ValueError("every image has the role query: there is no catalogue")
    return table.select(shown)
