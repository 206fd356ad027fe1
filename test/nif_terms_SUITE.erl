%% Every function of the NIF is called with terms that it does not expect, in each place, beside those that it does: it says badarg, or an error,
%% or does it; no panic comes out of it, and the node goes on. What the NIF decodes comes from this node's own code, which no fuzzer can
%% stand for: enif functions are the VM's. And the counters that it tells of count.
-module(nif_terms_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2, made_up_terms/1, counters/1]).
%% run on the node
-export([calls/3]).

-define(LIB, quic_dist_test_lib).
-define(NIF, quic_dist_nif).
%% For each function.
-define(CALLS, 2000).

suite() -> [{timetrap, {seconds, 300}}].

all() -> [made_up_terms, counters].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{Case, "it has no NIF"}], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

made_up_terms(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => T} || T <- ["terms", "b"]]),
    ?LIB:connect(A, B),
    Seed = {erlang:unique_integer(), os:system_time(), 1},
    ct:log("seed: ~w", [Seed]),
    Counted = ?LIB:call(A, ?MODULE, calls, [?LIB:node(B), Seed, ?CALLS], 240000),
    ct:log("function, calls that were badarg, others: ~p", [Counted]),
    %% most take something, and not everything
    Some = [F || {F, Badarg, Others} <- Counted, Badarg > 0, Others > 0],
    {Some, true} = {Some, 2 * length(Some) > length(Counted)},
    ?LIB:connect(A, B),
    pong = ?LIB:call(A, net_adm, ping, [?LIB:node(B)]).

%% The benchmark divides them by messages.
counters(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => T} || T <- ["a", "b"]]),
    Before = [counts(H) || H <- [A, B]],
    ?LIB:connect(A, B),
    [pong = ?LIB:call(A, net_adm, ping, [?LIB:node(B)]) || _ <- lists:seq(1, 100)],
    [?LIB:wait_until({all_have_grown, H, Was},
                     fun() ->
                         Now = counts(H),
                         ct:log("~p~n~p", [Was, Now]),
                         lists:all(fun(Key) -> maps:get(Key, Now) > maps:get(Key, Was) end, maps:keys(Was))
                     end, 20000)
     || {H, Was} <- lists:zip([A, B], Before)],
    ok.

counts(H) ->
    #{endpoints := [Info]} = ?LIB:call(H, quic_dist, info, []),
    Keys = [wake_ups, poll_calls, yields, guest_turns, receive_calls, send_calls, wake_calls, allocations, datagrams_received],
    maps:from_list([{Key, maps:get(Key, Info)} || Key <- Keys]).

%% How often each function said badarg, and anything else but that it has panicked.
-spec calls(node(), term(), pos_integer()) -> [{{atom(), arity()}, non_neg_integer(), non_neg_integer()}].
calls(Node, Seed, Calls) ->
    _ = rand:seed(exsss, Seed),
    {ok, Connection, _} = quic_dist_nodes:connection(Node),
    {ok, Identity} = ?NIF:identity_new(<<"qdt_a_cookie_12345">>, <<"x@127.0.0.1">>, false),
    Terms = list_to_tuple([Connection, Connection, Identity, ?NIF:hash_new() | terms()]),
    Functions = [F || {Name, _} = F <- ?NIF:module_info(exports), not lists:member(Name, [module_info, load])],
    %% what these do when they are called as they are meant is another suite's
    Ends = [panic, endpoint_close],
    Junk = list_to_tuple(terms()),
    [begin
         From = case lists:member(Name, Ends) of true -> Junk; false -> Terms end,
         Said = [call(Name, begun_well(Connection, From, [one_of(From) || _ <- lists:seq(1, Arity)])) || _ <- lists:seq(1, times(Name, Arity, Calls))],
         {F, length([badarg || badarg <- Said]), length([other || other <- Said])}
     end || {Name, Arity} = F <- Functions].

%% One that makes an identity takes 0.2 s, and one without arguments does the same each time.
times(_, 0, _) -> 10;
times(identity_new, _, Calls) -> Calls div 20;
times(_, _, Calls) -> Calls.

%% Mostly a connection comes first, and what comes after it is looked at if it is one.
begun_well(Connection, From, [_ | Args]) when element(1, From) =:= Connection ->
    [case rand:uniform(2) of 1 -> Connection; 2 -> one_of(From) end | Args];
begun_well(_, _, Args) ->
    Args.

call(Name, Args) ->
    try apply(?NIF, Name, Args) of
        _ -> other
    catch
        error:badarg -> badarg;
        Class:Reason -> error({Name, Args, Class, Reason})
    end.

one_of(Terms) -> element(rand:uniform(tuple_size(Terms)), Terms).

terms() ->
    Large = rand:bytes(100000),
    [0, 1, -1, 255, 256, 65536, (1 bsl 31) - 1, 1 bsl 31, (1 bsl 32), (1 bsl 63) - 1, 1 bsl 63, -(1 bsl 63), (1 bsl 64) - 1, 1 bsl 64, 1 bsl 2000, 0.0, 1.5, -1.0e300,
     true, false, undefined, infinity, bidi, uni, list_to_atom([955]), 'an atom',
     <<>>, <<0>>, <<"x@127.0.0.1">>, <<255, 254, 0>>, <<1:3>>, <<Large/binary, 1:1>>, Large, binary:part(Large, 3, 70000),
     [], [<<"a">>, [98 | <<"c">>]], [1, 2 | 3], [-1], [256], [Large, Large], lists:duplicate(5000, <<"part">>), "text", [{a, 1}],
     {}, {1}, {{127, 0, 0, 1}, 4369}, {{256, 0, 0, 1}, 1}, {{127, 0, 0, 1}, 65536}, {{0, 0, 0, 0, 0, 0, 0, 1}, 1}, {{127, 0, 0, 1}, 0},
     #{}, #{certfile => <<"/nowhere">>}, #{certfile => 1, depth => -1}, #{user_streams => 1 bsl 70}, #{data_streams => 0}, #{1 => 2},
     self(), spawn(fun() -> ok end), make_ref(), fun() -> ok end, fun erlang:node/0, hd(erlang:ports())].
