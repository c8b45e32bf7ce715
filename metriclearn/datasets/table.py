"""The product table: one row a picture, one column a fact about it.

Every reader of this package yields one. It is what the samplers (product codes), the input pipeline
(paths or pixels) and the evaluation (identities, roles) look at, so that none of them needs to know
a data set.
"""

import collections
import dataclasses
import functools
import hashlib
import re

import numpy as np

from metriclearn.registry import did_you_mean

# 'catalogue' as a split: shop pictures that stand beside every split and are never trained on.
SPLITS = ("train", "val", "test", "catalogue")
ROLES = ("", "train", "query", "catalogue")
TEXT_COLUMNS = ("ids", "paths", "products", "categories", "splits", "roles", "domains")
# Columns by the name of one row's value, as `where` takes them.
SINGULAR = {
    "id": "ids",
    "path": "paths",
    "product": "products",
    "category": "categories",
    "split": "splits",
    "role": "roles",
    "domain": "domains",
}


@dataclasses.dataclass(frozen=True, eq=False)
class ProductTable:
    """Pictures of products, column by column; row i of every column speaks of picture i.

    Attributes:
      products: [N] str, the product that the picture shows; never ''.
      paths: [N] str, the picture's file; '' where the pixels are in `images`.
      ids: [N] str, unique identity of the picture; the paths when left out.
      categories: [N] str, '' where a product has none.
      splits: [N] str, 'train' | 'val' | 'test' | 'catalogue' (shop pictures common to all splits).
      roles: [N] str, '' | 'train' | 'query' | 'catalogue'.
      domains: [N] str, where the picture comes from ('consumer', 'shop'), '' where it has no sense.
      boxes: int32 [N, 4] as x1, y1, x2, y2 in pixels of the file as stored (x2, y2 exclusive;
        EXIF orientation is ignored), or None. A row without a box is all zeros.
      images: uint8 [N, H, W, C] pixels in memory, or None.
      extra: further columns by name, each [N] str.

    Raises:
      ValueError: columns of different lengths, an id that occurs twice, an empty product, an
        unknown split or role.
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
    extra: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        def put(name, value):
            object.__setattr__(self, name, value)

        count = len(self.products)
        for name in TEXT_COLUMNS:
            value = getattr(self, name)
            if value is None:
                value = self.paths if name == "ids" else np.full(count, "", dtype=np.str_)
            put(name, np.asarray(value, dtype=np.str_))
        put("extra", {k: np.asarray(v, dtype=np.str_) for k, v in self.extra.items()})
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
        for name in (*TEXT_COLUMNS, *self.extra):
            if self.column(name).shape != (count,):
                raise ValueError(
                    f"column {name!r} has shape {list(self.column(name).shape)}, "
                    f"products has {count} rows"
                )
        self._check_values()

    def _check_values(self):
        if (self.products == "").any():
            row = int(np.argmax(self.products == ""))
            raise ValueError(f"row {row} ({str(self.ids[row])!r}): the product is empty")
        values, counts = np.unique(self.ids, return_counts=True)
        if (counts > 1).any():
            twice = str(values[np.argmax(counts > 1)])
            rows = np.nonzero(self.ids == twice)[0][:2]
            raise ValueError(f"the id {twice!r} occurs twice (rows {rows[0]} and {rows[1]})")
        for name, allowed in (("splits", (*SPLITS, "")), ("roles", ROLES)):
            strange = ~np.isin(self.column(name), allowed)
            if strange.any():
                value = str(self.column(name)[np.argmax(strange)])
                raise ValueError(
                    f"{name}: {value!r} is none of {', '.join(filter(None, allowed))}"
                    + did_you_mean(value, allowed)
                )

    def __len__(self):
        return len(self.products)

    def __repr__(self):
        splits = ", ".join(
            f"{name or 'no split'} {count:,}"
            for name, count in sorted(collections.Counter(self.splits.tolist()).items())
        )
        products = len(np.unique(self.products))
        return f"ProductTable({len(self):,} pictures, {products:,} products; {splits})"

    def column(self, name):
        """[N] values of a column: a field's name, its singular, or an extra column's name."""
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
    def labels(self):
        """int64 [N] codes of the products: the rank of the product among this table's products."""
        return np.unique(self.products, return_inverse=True)[1].astype(np.int64)

    @functools.cached_property
    def category_labels(self):
        """int64 [N] codes of the categories: the rank among this table's categories."""
        return np.unique(self.categories, return_inverse=True)[1].astype(np.int64)

    def select(self, rows):
        """The table of the given rows: a boolean mask [N] or integer row numbers, in that order."""
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape != (len(self),):
            raise ValueError(f"a mask must be [{len(self)}], not {list(rows.shape)}")
        if rows.size == 0:
            rows = rows.astype(np.int64)
        picked = {name: getattr(self, name)[rows] for name in TEXT_COLUMNS}
        for name in ("boxes", "images"):
            value = getattr(self, name)
            picked[name] = None if value is None else value[rows]
        return ProductTable(**picked, extra={k: v[rows] for k, v in self.extra.items()})

    def where(self, **columns):
        """The rows whose columns hold the given value, or one of the given values.

        `table.where(split="test", role="query")`, `table.where(role=("query", "catalogue"))`. Names
        are those of one row's value (split, role, product, ...) or of an extra column.
        """
        mask = np.ones(len(self), dtype=bool)
        for name, wanted in columns.items():
            mask &= np.isin(self.column(name), np.atleast_1d(np.asarray(wanted, dtype=np.str_)))
        return self.select(mask)


def parse_conditions(text):
    """Reads conditions on columns, such as `role=query,category=Fruit, fresh|Vegetables`.

    A condition is `column=value` or `column=value|value|…`. Conditions are separated by commas; a
    value may hold commas too, since only a comma that another `column=` follows ends a condition. A
    backslash before a comma, bar, equals sign or backslash takes away its meaning.

    Args:
      text: the conditions; '' holds none.

    Returns:
      {column: [values]}.

    Raises:
      ValueError: a condition without a column or an equals sign, or a column named twice.
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


def select_where(table, text):
    """The rows of a table that meet all conditions of a text; see `parse_conditions`.

    Raises:
      ValueError: a malformed condition, an unknown column, or a value that no row has.
    """
    for column, values in parse_conditions(text).items():
        known = np.unique(table.column(column))
        for value in values:
            if value not in known:
                hint = did_you_mean(value, known)
                raise ValueError(f"{column}={value}: no row has this {column}{hint}")
        table = table.where(**{column: values})
    return table


def split_by_product(products, fractions=(0.7, 0.1, 0.2), salt=""):
    """Splits at the level of products, so that the test shows products never trained on.

    The products are ordered by the SHA-256 of their name (and of `salt`); the first
    `fractions[0]` of them are 'train', then 'val', then 'test'. So the split depends on names
    alone: not on the order of rows, on the number of pictures, nor on a random generator's version.

    Args:
      products: [N] str.
      fractions: three non-negative numbers (train, val, test); they are normalised.
      salt: another text gives another split.

    Returns:
      [N] str of 'train', 'val' and 'test'. A part with a positive fraction gets at least one
      product.

    Raises:
      ValueError: fewer products than parts.
    """
    names = np.unique(np.asarray(products, dtype=np.str_))
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or (shares < 0).any() or shares.sum() <= 0:
        raise ValueError(f"fractions must be three non-negative numbers, not {fractions!r}")
    if len(names) < np.count_nonzero(shares):
        raise ValueError(
            f"{len(names)} products cannot be split into train, val and test: "
            "give a split column, or more products"
        )
    keys = [hashlib.sha256(f"{salt}\0{name}".encode()).digest() for name in names]
    order = sorted(range(len(names)), key=keys.__getitem__)
    sizes = np.maximum(np.rint(shares / shares.sum() * len(names)).astype(int), shares > 0)
    sizes[np.argmax(sizes)] += len(names) - sizes.sum()
    part = np.empty(len(names), dtype="<U5")
    part[order] = np.repeat(["train", "val", "test"], sizes)
    return part[np.searchsorted(names, products)]


def queries_and_catalogue(table, split="test"):
    """The two tables of a retrieval evaluation on `split`.

    The catalogue is every row with role 'catalogue' in this split or in the split 'catalogue'. The
    queries are the split's rows with role 'query', or, where there are none, all its rows that are
    not catalogue. A split without any catalogue picture is evaluated leave-one-out: both tables are
    the whole split, and the evaluation excludes the query itself by its id.

    Returns:
      (queries, catalogue): two ProductTables.

    Raises:
      ValueError: the split has no picture to search with.
    """
    shown = (table.roles == "catalogue") & np.isin(table.splits, (split, "catalogue"))
    mine = (table.splits == split) & (table.roles != "catalogue")
    asked = mine & (table.roles == "query")
    queries = table.select(asked if asked.any() else mine)
    if not len(queries):
        have = ", ".join(sorted(set(table.splits.tolist())))
        raise ValueError(f"no picture in split {split!r} to search with (splits: {have})")
    return queries, (table.select(shown) if shown.any() else queries)
