%% Nodes with certificates, for the suites of identity: the files of one, the options that name these, and what nodes say and do.
-module(quic_dist_test_trust).
-include_lib("common_test/include/ct.hrl").

-export([init_suite/1, ca/1, leaf/2, file/2, names/2, files/3, start_certified/3, start_with/4, start_with/5]).
-export([quic_dist_env/1, quoted/1, with_optfile/3, ssl_options/1, write_term/3]).
-export([connects/1, refused/2, renewed_identity/1, logged/2, has_logged/2, said/2]).
%% run on a node
-export([while_it_is_made/3]).

-define(LIB, quic_dist_test_lib).
-define(CA, quic_dist_test_ca).

%% With an authority that has signed all certificates that are not said to be of another.
init_suite(Config) ->
    {ok, _} = application:ensure_all_started(public_key),
    Ca = ?CA:authority("test authority"),
    %% a file that is written again is read again; so it is not by each case
    ?CA:write(authority_file(Config), ?CA:pem(Ca)),
    ?LIB:init_suite([{ca, Ca} | Config]).

ca(Config) -> ?config(ca, Config).

leaf(Config, Name) -> ?CA:leaf(ca(Config), #{names => [{node, Name}]}).

authority_file(Config) -> file(Config, "ca.pem").

file(Config, Name) -> filename:join(?config(priv_dir, Config), Name).

names(Config, Name) ->
    #{cert => file(Config, Name ++ ".pem"), key => file(Config, Name ++ ".key"), ca => authority_file(Config), name => Name}.

files(Config, Name, Leaf) ->
    #{cert := Cert, key := Key} = Names = names(Config, Name),
    ?CA:write(Cert, ?CA:pem(Leaf)),
    ?CA:write(Key, ?CA:key_pem(Leaf)),
    Names#{leaf => Leaf}.

%% A node for each authority, with a certificate in its own name.
start_certified(Config, Authorities, ToArgs) ->
    [begin
         Name = ?LIB:name("f"),
         start_with(Config, Name, ?CA:leaf(Ca, #{names => [{node, Name}]}), ToArgs)
     end || Ca <- Authorities].

start_with(Config, Name, Leaf, ToArgs) -> start_with(Config, Name, Leaf, ToArgs, []).

start_with(Config, Name, Leaf, ToArgs, Env) ->
    ?LIB:start(#{name => Name, args => ToArgs(files(Config, Name, Leaf)), env => Env}).

quic_dist_env(#{cert := Cert, key := Key, ca := Ca}) ->
    lists:append([["-quic_dist", Option, quoted(File)] || {Option, File} <- [{"certfile", Cert}, {"keyfile", Key}, {"cacertfile", Ca}]]).

quoted(File) -> "\"" ++ File ++ "\"".

with_optfile(Config, #{cert := Cert, key := Key, ca := Ca, name := Name, leaf := Leaf}, Password) ->
    ?CA:write(Key, ?CA:key_pem(Leaf, Password)),
    Options = [{certfile, Cert}, {keyfile, Key}, {password, Password}, {cacertfile, Ca}, {verify, verify_peer}],
    ["-quic_dist_optfile", write_term(Config, Name ++ ".opt", [{server, Options}, {client, Options}])].

ssl_options(#{cert := Cert, key := Key, ca := Ca}) ->
    [{certfile, Cert}, {keyfile, Key}, {cacertfile, Ca}, {verify, verify_peer}].

write_term(Config, Name, Term) -> ?CA:write(file(Config, Name), io_lib:format("~p.~n", [Term])).

connects([A, B]) ->
    ok = ?LIB:connect(A, B),
    #{verified := certificate} = ?LIB:connection(A, B),
    #{verified := certificate} = ?LIB:connection(B, A),
    pong = ?LIB:call(A, net_adm, ping, [?LIB:node(B)]).

%% The endpoint looks at the cookie once a second.
renewed_identity(Nodes) ->
    [?LIB:wait_until(renewed, fun() -> logged(N, "new connections use a new identity") =:= true end, 20000) || N <- Nodes],
    ok.

refused(A, B) ->
    false = ?LIB:call(A, net_kernel, connect_node, [?LIB:node(B)]),
    false = lists:member(?LIB:node(A), ?LIB:call(B, erlang, nodes, [connected])),
    ok.

logged(Node, Line) -> re:run(?LIB:output(Node), Line) =/= nomatch.

%% Whether it has been logged until now: a node's terminal is read a little later than it is written.
has_logged(Node, Line) ->
    Mark = lists:concat(["until now: ", erlang:unique_integer([positive])]),
    ok = ?LIB:call(Node, logger, notice, [Mark]),
    said(Node, Mark),
    logged(Node, Line).

%% Soon.
said(Node, Line) -> ?LIB:wait_until({said, Line}, fun() -> logged(Node, Line) end, 20000).

%% On a node: First has an identity made, and while that is made, of all that was read for it, there is Second. On a machine that stands still
%% that may come too late, and then it is tried again.
while_it_is_made(Function, First, Second) -> while_it_is_made(Function, First, Second, 10).

while_it_is_made({Name, Arity} = Function, First, Second, Left) when Left > 0 ->
    Server = whereis(quic_dist_endpoint),
    1 = erlang:trace_pattern({quic_dist_nif, Name, Arity}, [{'_', [], [{return_trace}]}], [local]),
    1 = erlang:trace(Server, true, [call]),
    First(Left),
    receive {trace, Server, call, {quic_dist_nif, Name, _}} -> ok after 20000 -> error(deadline) end,
    %% it takes 200
    receive after 30 -> ok end,
    Second(),
    IsDone = receive {trace, Server, return_from, _, _} -> true after 0 -> false end,
    IsDone orelse receive {trace, Server, return_from, _, _} -> ok after 20000 -> error(deadline) end,
    1 = erlang:trace(Server, false, [call]),
    Ref = erlang:trace_delivered(Server),
    receive {trace_delivered, Server, Ref} -> ok end,
    flush(Server),
    case IsDone of
        false -> ok;
        true -> while_it_is_made(Function, First, Second, Left - 1)
    end.

flush(Server) -> receive T when element(1, T) =:= trace, element(2, T) =:= Server -> flush(Server) after 0 -> ok end.
