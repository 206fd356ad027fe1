%% Types the examples of docs/streams.md at two real nodes, in their order. A block is marked with the node it is for ("erlang a"), or is
%% for the shell ("sh"); `a@host` and `b@host` are the nodes' names.
-module(guide_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([streams/1]).
%% run on the nodes
-export([shell/1]).

-define(LIB, quic_dist_test_lib).
-define(S, quic_dist_test_streams).

suite() -> [{timetrap, {seconds, 90}}].

all() -> [streams].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{Case, "streams are QUIC's"}], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

streams(Config) ->
    Folder = ?config(priv_dir, Config),
    Guide = filename:join([code:lib_dir(quic_dist), "docs", "streams.md"]),
    {ok, Text} = file:read_file(guide(Guide)),
    Blocks = blocks(Text),
    %% a guide without examples would pass
    true = length([x || {<<"erlang a">>, _} <- Blocks]) > 5,
    true = length([x || {<<"erlang b">>, _} <- Blocks]) > 5,
    true = lists:keymember(<<"sh">>, 1, Blocks),
    {A, B, NodeA, NodeB} = ?S:pair(),
    [ok = ?LIB:call(H, file, set_cwd, [Folder]) || H <- [A, B]],
    Shells = #{<<"erlang a">> => {A, typist(A)}, <<"erlang b">> => {B, typist(B)}},
    [begin
         Named = lists:foldl(fun({Name, Node}, T) -> binary:replace(T, Name, atom_to_binary(Node), [global]) end, Block,
                             [{<<"a@host">>, NodeA}, {<<"b@host">>, NodeB}]),
         ct:log("~ts~n~ts", [Kind, Named]),
         case Shells of
             #{Kind := {Handle, Pid}} -> typed(Handle, Pid, unicode:characters_to_list(Named));
             #{} when Kind =:= <<"sh">> -> commands(Folder, binary_to_list(Named))
         end
     end || {Kind, Block} <- Blocks],
    ok.

%% In the repository, wherever the application was built.
guide(Path) ->
    case filelib:is_regular(Path) of
        true -> Path;
        false -> filename:join([filename:dirname(?FILE), "..", "docs", "streams.md"])
    end.

%% The fenced blocks that say what they are.
blocks(Text) ->
    {match, Found} = re:run(Text, "^```([^\n]+)\n(.*?)^```$", [global, multiline, dotall, {capture, all_but_first, binary}]),
    [{Kind, Block} || [Kind, Block] <- Found].

%%% Erlang

typist(Handle) -> ?LIB:run(Handle, fun() -> spawn(?MODULE, shell, [[]]) end).

%% What is typed at one node is evaluated by one process, which keeps what names are bound to.
shell(Bindings) ->
    receive
        {type, From, Text} ->
            {Result, Bound} = try {ok, expressions(Text, Bindings)} of
                {ok, Then} -> {ok, Then}
            catch
                Class:Reason:Stack -> {{Class, Reason, Stack}, Bindings}
            end,
            From ! {typed, Result},
            shell(Bound)
    end.

expressions(Text, Bindings) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    lists:foldl(fun(Expression, Bound) ->
        {ok, Parsed} = erl_parse:parse_exprs(Expression),
        {value, _, Then} = erl_eval:exprs(Parsed, Bound),
        Then
    end, Bindings, sentences(Tokens, [])).

sentences([], []) -> [];
sentences([{dot, _} = Dot | Tokens], Sentence) -> [lists:reverse([Dot | Sentence]) | sentences(Tokens, [])];
sentences([Token | Tokens], Sentence) -> sentences(Tokens, [Token | Sentence]).

typed(Handle, Pid, Text) ->
    ok = ?LIB:run(Handle, fun() ->
        Pid ! {type, self(), Text},
        receive {typed, Result} -> Result after 15000 -> {not_finished, process_info(Pid, messages), Text} end
    end).

%%% The shell's

commands(Folder, Text) ->
    Priv = code:priv_dir(quic_dist),
    ok = file:write_file(filename:join(Folder, "guide.sh"),
                         ["set -eu\n", string:replace(Text, "priv/", Priv ++ "/", all)]),
    Port = open_port({spawn_executable, "/bin/sh"},
                     [exit_status, stderr_to_stdout, {cd, Folder}, {args, ["guide.sh"]},
                      {env, [{"ERL_FLAGS", "-setcookie " ++ ?LIB:cookie()}]}]),
    {0, _} = finished(Port, []).

finished(Port, Output) ->
    receive
        {Port, {data, Data}} -> finished(Port, Output ++ Data);
        {Port, {exit_status, Status}} -> ct:log("~ts", [Output]), {Status, Output}
    after 30000 -> error({deadline, Output})
    end.
