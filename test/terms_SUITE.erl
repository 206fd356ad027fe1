%% Every kind of term, and messages of every size, arrive on the other node as what they were: sent to an echo process there and
%% compared with what comes back, from each end; large ones by hash, which the other end computes from what it got.
-module(terms_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([numbers/1, atoms/1, binaries/1, lists_and_tuples/1, maps/1, identifiers/1, funs/1, random_terms/1, many_atoms/1,
         compressed_looking/1, sizes/1, sizes_in_lists/1, huge/1, first/1, large_both_ways/1]).
%% run on the nodes
-export([echo/0, hash_all/1, stamped/2, an_exported_fun/1]).

-define(LIB, quic_dist_test_lib).
-define(DEADLINE, 30000).
-define(KIB, 1024).
-define(MIB, 1048576).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [numbers, atoms, binaries, lists_and_tuples, maps, identifiers, funs, random_terms, many_atoms, compressed_looking,
     sizes, sizes_in_lists, huge, first, large_both_ways].

init_per_suite(Config) ->
    _ = ?LIB:init_suite(Config),
    [A, B] = ?LIB:start_all([#{tag => T, scope => suite} || T <- ["a", "b"]]),
    [{a, A}, {b, B} | Config].
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(_Case, Config) ->
    ?LIB:connect(?config(a, Config), ?config(b, Config)),
    Config.
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%% Echoes the terms that Make (run on the sending node) gives: from A by B, and from B by A.
there_and_back(Config, Make) ->
    [A, B] = [?config(H, Config) || H <- [a, b]],
    [begin
         Peer = ?LIB:node(To),
         Count = ?LIB:run(From, fun() -> echo_terms(Peer, Make()) end, 60000),
         true = Count > 0
     end || {From, To} <- [{A, B}, {B, A}]],
    ok.

echo_terms(Peer, Terms) ->
    Echo = spawn_link(Peer, ?MODULE, echo, []),
    [begin
         Echo ! {self(), Term},
         receive
             {Echo, Back} ->
                 %% `=:=` alone takes 0.0 for -0.0 on OTP 25
                 Back =:= Term andalso term_to_binary(Back, [deterministic]) =:= term_to_binary(Term, [deterministic])
                     orelse error({changed, Term, Back})
         after ?DEADLINE -> error({deadline, Term})
         end
     end || Term <- Terms],
    %% and all of them in one message
    Echo ! {self(), Terms},
    receive {Echo, Terms} -> ok after ?DEADLINE -> error({deadline, all_terms}) end,
    true = unlink(Echo),
    exit(Echo, kill),
    length(Terms).

-spec echo() -> no_return().
echo() ->
    receive {From, Term} -> From ! {self(), Term} end,
    ?MODULE:echo().

%%% Kinds

numbers(Config) ->
    there_and_back(Config, fun() ->
        Powers = [1 bsl N || N <- [0, 7, 8, 15, 16, 27, 28, 31, 32, 59, 60, 63, 64, 127, 128, 2039, 2040, 2048, 100000]],
        Ints = lists:append([[P - 1, P, P + 1, -P - 1, -P, -P + 1] || P <- Powers]),
        Floats = [0.0, -0.0, 1.0, -1.5, 3.141592653589793, 1.7976931348623157e308, -1.7976931348623157e308, 2.2250738585072014e-308, 4.9e-324],
        Ints ++ Floats
    end).

atoms(Config) ->
    there_and_back(Config, fun() ->
        [ok, '', 'with space', 'Üñí', list_to_atom([16#1F427, 16#4E16, 16#754C]), list_to_atom(lists:duplicate(255, $a)),
         list_to_atom(lists:duplicate(255, 16#10FFFF)), list_to_atom([0]), node(), true, undefined]
    end).

binaries(Config) ->
    there_and_back(Config, fun() ->
        Base = rand:bytes(100000),
        <<_:3, Shifted:777/bitstring, _/bitstring>> = Base,
        <<_:13/binary, Middle:70000/binary, _/binary>> = Base,
        Bits = [begin <<B:N/bitstring, _/bitstring>> = Base, B end || N <- lists:seq(0, 70) ++ [511, 513, 524287, 524289]],
        Offsets = [begin <<_:N, B:100/bitstring, _/bitstring>> = Base, B end || N <- lists:seq(0, 16)],
        %% parts of one binary in one term: the sender must not send the whole, nor the wrong, part
        Parts = [binary:part(Base, I * 1000, 900) || I <- lists:seq(0, 99)],
        [<<>>, <<0>>, Shifted, Middle, Parts, {Base, Middle, Shifted} | Bits ++ Offsets]
    end).

lists_and_tuples(Config) ->
    there_and_back(Config, fun() ->
        [[], [[]], [[[[]]]], [a | b], [1, 2 | 3], [1, 2, 3 | <<"tail">>], "string", lists:seq(0, 255), [256 | "not a string"],
         lists:duplicate(65535, $x), lists:duplicate(65536, $x), lists:seq(1, 70000),
         {}, {{}}, {a}, list_to_tuple(lists:seq(1, 255)), list_to_tuple(lists:seq(1, 256)), list_to_tuple(lists:seq(1, 100000)),
         lists:foldl(fun(_, Acc) -> {Acc} end, deep, lists:seq(1, 10000)), lists:foldl(fun(_, Acc) -> [Acc] end, deep, lists:seq(1, 10000)),
         {record, [{proplist, "value"}], <<"b">>, 1.5, #{k => [v]}}]
    end).

maps(Config) ->
    there_and_back(Config, fun() ->
        Sized = [maps:from_list([{I, {I, integer_to_binary(I)}} || I <- lists:seq(1, N)]) || N <- [0, 1, 31, 32, 33, 34, 128, 1000, 50000]],
        Keys = #{1 => int, 1.0 => float, [] => nil, {} => tuple, #{} => map, <<>> => bin, <<1:1>> => bits, atom => atom, "s" => list,
                 #{#{a => b} => c} => nested, self() => pid, make_ref() => ref, fun erlang:abs/1 => function},
        [Keys, #{deep => lists:foldl(fun(I, M) -> #{I => M} end, #{}, lists:seq(1, 1000))} | Sized]
    end).

identifiers(Config) ->
    Foreign = ?LIB:start(#{tag => "foreign"}),
    ?LIB:connect(Foreign, ?config(b, Config)),
    ForeignNode = ?LIB:node(Foreign),
    there_and_back(Config, fun() ->
        Pid = spawn(fun() -> ok end),
        {Theirs, Ref} = spawn_monitor(ForeignNode, fun() -> ok end),
        [self(), Pid, whereis(init), erlang:ports(), hd(erlang:ports()), make_ref(), alias(), Theirs, Ref,
         erpc:call(ForeignNode, erlang, ports, []), [make_ref() || _ <- lists:seq(1, 100)], {node(), ForeignNode},
         erpc:call(ForeignNode, fun() -> {self(), make_ref(), fun() -> ForeignNode end} end)]
    end),
    %% an identifier that came back still names the same thing
    [A, NodeB] = [?config(a, Config), ?LIB:node(?config(b, Config))],
    ok = ?LIB:run(A, fun() ->
        Echo = spawn(NodeB, ?MODULE, echo, []),
        Target = self(),
        Alias = alias(),
        [begin
             Echo ! {self(), {wrapped, Id}},
             receive {Echo, {wrapped, Back}} -> Back ! {hello, Id} after ?DEADLINE -> error(deadline) end,
             receive {hello, Id} -> ok after ?DEADLINE -> error({lost, Id}) end
         end || Id <- [Target, Alias]],
        exit(Echo, kill),
        ok
    end).

%% A fun is more than equal: it still computes.
funs(Config) ->
    there_and_back(Config, fun() ->
        X = rand:bytes(10000),
        [fun ?MODULE:an_exported_fun/1, fun lists:map/2, fun() -> ok end, fun(Y) -> {X, Y} end, fun(F) -> F(F) end]
    end),
    NodeB = ?LIB:node(?config(b, Config)),
    ok = ?LIB:run(?config(a, Config), fun() ->
        X = rand:uniform(1000),
        Me = self(),
        Adder = fun(Y) -> {node(), X + Y} end,
        spawn(NodeB, fun() -> Me ! {Adder(1), fun(Z) -> Adder(Z) end, fun ?MODULE:an_exported_fun/1} end),
        Expected = X + 1,
        Twice = 2 * X,
        receive
            {{NodeB, Expected}, Wrapped, Exported} ->
                {_, Twice} = Wrapped(X),
                {exported, 7} = Exported(7),
                ok
        after ?DEADLINE -> error(deadline)
        end
    end).

-spec an_exported_fun(term()) -> {exported, term()}.
an_exported_fun(X) -> {exported, X}.

random_terms(Config) ->
    Seed = erlang:phash2(erlang:timestamp()),
    ct:log("seed ~p", [Seed]),
    there_and_back(Config, fun() ->
        _ = rand:seed(exsss, Seed),
        [random_term(6) || _ <- lists:seq(1, 2000)]
    end).

random_term(0) -> random_leaf(rand:uniform(8));
random_term(Depth) ->
    case rand:uniform(6) of
        1 -> random_leaf(rand:uniform(8));
        2 -> [random_term(Depth - 1) || _ <- lists:seq(1, rand:uniform(5))];
        3 -> list_to_tuple([random_term(Depth - 1) || _ <- lists:seq(1, rand:uniform(5))]);
        4 -> maps:from_list([{random_term(Depth div 2), random_term(Depth - 1)} || _ <- lists:seq(1, rand:uniform(5))]);
        5 -> [random_term(Depth - 1) | random_term(Depth - 1)];
        6 -> random_leaf(rand:uniform(8))
    end.

random_leaf(1) -> rand:uniform(1 bsl rand:uniform(100));
random_leaf(2) -> -rand:uniform(1 bsl rand:uniform(64));
random_leaf(3) -> rand:normal();
random_leaf(4) -> rand:bytes(rand:uniform(200));
random_leaf(5) -> Size = rand:uniform(50), <<Bits:Size/bitstring, _/bitstring>> = rand:bytes(8), Bits;
random_leaf(6) -> make_ref();
random_leaf(7) -> lists:nth(rand:uniform(5), [a, b, '', 'Ü', "text"]);
random_leaf(8) -> self().

%% More atoms than an atom cache has places (2048), in every position, again and again.
many_atoms(Config) ->
    there_and_back(Config, fun() ->
        Atoms = [list_to_atom("many_atoms_" ++ integer_to_list(I)) || I <- lists:seq(1, 5000)],
        [Atoms, lists:reverse(Atoms), list_to_tuple(Atoms), maps:from_list([{A, A} || A <- Atoms]) | Atoms]
    end).

%% Runs of one byte, and bytes that look like framing: nothing on the way may take them for its own.
compressed_looking(Config) ->
    there_and_back(Config, fun() ->
        [binary:copy(<<Byte>>, Size) || Byte <- [0, 1, 4, 68, 70, 112, 131, 255], Size <- [4, 1000, 65536, 300000]]
            ++ [binary:copy(<<Size:32>>, 20000) || Size <- [0, 4, 80000, 16#FFFFFFFF]]
    end).

%%% Sizes

%% Exact sizes of the payload around every limit on the way: the heap binary, one datagram, one distribution fragment, and so on.
sizes(Config) ->
    there_and_back(Config, fun() ->
        Around = [0, 1, 63, 64, 65] ++ lists:append([[S - 1, S, S + 1] || S <- [256, 1200, 1350, 1500, 4 * ?KIB, 8900, 16000, 16384, 65507,
                                                                              64 * ?KIB, 128 * ?KIB, 1 * ?MIB, 4 * ?MIB, 16 * ?MIB]]),
        [rand:bytes(S) || S <- Around]
    end).

%% Every size of the whole packet in a row: no length is special.
sizes_in_lists(Config) ->
    there_and_back(Config, fun() ->
        Random = rand:bytes(70000),
        [binary_to_list(Random, 1, S) || S <- lists:seq(1, 1500)]
            ++ [binary:copy(binary:part(Random, 0, S)) || S <- lists:seq(16000 - 150, 16000 + 150) ++ lists:seq(65536 - 200, 65536 + 50)]
    end).

huge(Config) ->
    NodeB = ?LIB:node(?config(b, Config)),
    [ok = ?LIB:run(?config(a, Config), fun() -> send_hashed(NodeB, [Size]) end, 90000) || Size <- [64 * ?MIB, 256 * ?MIB]],
    ok.

%% A message that makes its node dial is encoded before the other node's flags are known, and so not cut into fragments.
first(Config) ->
    [A, B] = [?config(H, Config) || H <- [a, b]],
    NodeB = ?LIB:node(B),
    [begin
         {Hasher, Expected} = ?LIB:run(A, fun() ->
             Self = self(),
             Pid = spawn(NodeB, ?MODULE, hash_all, [Self]),
             Binary = stamped(first, Size),
             true = erlang:disconnect_node(NodeB),
             Pid ! {message, Binary},
             Pid ! done,
             receive {Pid, Got} -> {Got, [{Size, erlang:md5(Binary)}]} after 60000 -> error({deadline, Size}) end
         end, 90000),
         Hasher = Expected
     end || Size <- [0, 65, 65536, 3 * ?MIB, 100 * ?MIB]],
    ok.

%% Several large messages from each end at the same time, with small ones in between.
large_both_ways(Config) ->
    [A, B] = [?config(H, Config) || H <- [a, b]],
    Case = self(),
    Sizes = [8 * ?MIB, 1, 32 * ?MIB, 70000, 8 * ?MIB, 0, 3 * ?MIB],
    Runs = [begin
                Peer = ?LIB:node(To),
                spawn_monitor(fun() -> Case ! {self(), ?LIB:run(From, fun() -> send_hashed(Peer, Sizes) end, 60000)} end)
            end || {From, To} <- [{A, B}, {B, A}, {A, B}]],
    [receive
         {Pid, ok} -> erlang:demonitor(Monitor, [flush]);
         {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
     after 90000 -> error(deadline)
     end || {Pid, Monitor} <- Runs],
    ok.

%% Sends binaries of these sizes; the other end tells size and hash of each.
send_hashed(Peer, Sizes) ->
    Hasher = spawn(Peer, ?MODULE, hash_all, [self()]),
    Expected = [begin
                    Binary = stamped(I, Size),
                    Hasher ! {message, Binary},
                    {Size, erlang:md5(Binary)}
                end || {I, Size} <- lists:zip(lists:seq(1, length(Sizes)), Sizes)],
    Hasher ! done,
    receive
        {Hasher, Expected} -> ok;
        {Hasher, Got} -> error({differs, Expected, Got})
    after 80000 -> error({deadline, Sizes})
    end.

%% Random bytes with their position in every mebibyte: a chunk that is lost, doubled or swapped changes the hash.
-spec stamped(term(), non_neg_integer()) -> binary().
stamped(Salt, Size) ->
    Block = rand:bytes(?MIB),
    Salted = erlang:phash2(Salt),
    Blocks = [<<Salted:32, I:32, Block/binary>> || I <- lists:seq(0, Size div (?MIB + 8))],
    binary:copy(binary:part(iolist_to_binary(Blocks), 0, Size)).

-spec hash_all(pid()) -> term().
hash_all(To) -> hash_loop(To, []).

hash_loop(To, Hashes) ->
    receive
        {message, Binary} -> hash_loop(To, [{byte_size(Binary), erlang:md5(Binary)} | Hashes]);
        done -> To ! {self(), lists:reverse(Hashes)}
    end.
