"""Arrays of groups, by hand."""

import numpy as np

from retrieval.ranking import groups


def test_ranges_and_running_sums_of_groups():
    start, count = np.array([5, 0, 9]), np.array([2, 0, 3])
    assert groups.ranges(start, count).tolist() == [5, 6, 9, 10, 11]
    assert groups.ranges(start[:0], count[:0]).tolist() == []
    values = np.array([1, 2, 3, 4, 5])
    assert groups.cumulative(values, np.array([2, 3])).tolist() == [1, 3, 3, 7, 12]
    assert groups.cumulative(values[:0], count[:0]).tolist() == []


def test_first_place_in_sorted_parts():
    values = np.array([9, 5, 1, 8, 8, 2])
    low, high = np.array([0, 3, 3]), np.array([3, 6, 3])
    found = groups.first_place(low, high, lambda at: values[at] < 6)
    assert found.tolist() == [1, 5, 3]
    assert low.tolist() == [0, 3, 3]  # as they were


def test_arrays_of_one_kind_are_joined():
    found = groups.joined([(np.array([1]), np.array([2])), (np.array([3]), np.array([4]))])
    assert [each.tolist() for each in found] == [[1, 3], [2, 4]]
    assert [each.tolist() for each in groups.where(np.eye(2) > 0)] == [[0, 1], [0, 1]]
