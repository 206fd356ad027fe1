%% Numbers about numbers: percentiles of samples, medians of runs.
-module(quic_dist_bench_stats).

-export([percentile/2, samples/1, summary/1, cdf/2]).

-export_type([summary/0]).

-type summary() :: #{median := number(), min := number(), max := number()}.

%% Of a sorted tuple; the smallest sample that at least that part (0 to 1) of all do not exceed.
-spec percentile(float(), tuple()) -> number().
percentile(Part, Sorted) when tuple_size(Sorted) > 0 ->
    element(max(1, ceil(Part * tuple_size(Sorted))), Sorted).

%% Samples as they come from a node, sorted.
-spec samples(binary()) -> tuple().
samples(Packed) ->
    list_to_tuple(lists:sort([Ns || <<Ns:64>> <= Packed])).

-spec summary([number(), ...]) -> summary().
summary(Values) ->
    Sorted = lists:sort(Values),
    Count = length(Sorted),
    Median = case Count rem 2 of
                 1 -> lists:nth(Count div 2 + 1, Sorted);
                 0 -> (lists:nth(Count div 2, Sorted) + lists:nth(Count div 2 + 1, Sorted)) / 2
             end,
    #{median => Median, min => hd(Sorted), max => lists:last(Sorted)}.

%% At most Points points {Sample, part of the samples that do not exceed it}, closer together near the end.
-spec cdf(tuple(), pos_integer()) -> [{number(), float()}].
cdf(Sorted, Points) ->
    Count = tuple_size(Sorted),
    Even = [I / Points || I <- lists:seq(1, Points)],
    Tail = [1 - math:pow(10, -2 - I / 20) || I <- lists:seq(0, 40)],
    Places = lists:usort([max(1, min(Count, ceil(Part * Count))) || Part <- Even ++ Tail]),
    [{element(Place, Sorted), Place / Count} || Place <- Places].
