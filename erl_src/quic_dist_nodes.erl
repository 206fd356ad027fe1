%% @doc Which connection leads to which node: so that a process that sends on
%% a stream finds the connection without asking another process.
%%
%% A table per family, owned by the family's endpoint server, without which no
%% connection lives. A controller enters itself; the server, which monitors it
%% from then on, takes it out.
-module(quic_dist_nodes).

-export([new/1, enter/3, leave/2, connection/1, controllers/0]).

-type conn() :: quic_dist_nif:connection().

%% @doc Makes the table of a family; the caller owns it.
-spec new(quic_dist_opts:family()) -> ok.
new(Family) ->
    _ = ets:new(table(Family), [named_table, public, {read_concurrency, true}]),
    ok.

%% @doc The calling controller is the one of `Node' from now on. A controller
%% before it, if there was one, has ended.
-spec enter(quic_dist_opts:family(), node(), conn()) -> ok.
enter(Family, Node, Conn) ->
    true = ets:insert(table(Family), [{Node, Conn, self()},
                                      {self(), Conn, Node}]),
    ok.

%% @doc A controller has ended. Its node may have a new one by now.
-spec leave(quic_dist_opts:family(), Controller :: pid()) -> ok.
leave(Family, Controller) ->
    case ets:take(table(Family), Controller) of
        [{Controller, Conn, Node}] ->
            true = ets:delete_object(table(Family), {Node, Conn, Controller}),
            ok;
        [] ->
            ok
    end.

%% @doc The connection to a node, or that of a controller, and the controller or
%% the node with it.
-spec connection(node()) -> {ok, conn(), Controller :: pid()}
                          | {error, not_connected};
                (Controller :: pid()) -> {ok, conn(), node()}
                                       | {error, not_connected}.
connection(Key) ->
    case lookup(table(inet), Key) of
        {ok, _, _} = Found -> Found;
        {error, _} -> lookup(table(inet6), Key)
    end.

%% @doc Everything that is connected.
-spec controllers() -> [{node(), pid(), conn()}].
controllers() ->
    [{Node, Pid, Conn} || Family <- [inet, inet6],
                          ets:whereis(table(Family)) =/= undefined,
                          {Node, Conn, Pid} <- ets:tab2list(table(Family)),
                          is_atom(Node)].

%% There is no table where the family is not in use.
lookup(Table, Key) ->
    try ets:lookup(Table, Key) of
        [{_, Conn, Other}] -> {ok, Conn, Other};
        [] -> {error, not_connected}
    catch
        error:badarg -> {error, not_connected}
    end.

table(inet) -> quic_dist_nodes;
table(inet6) -> quic6_dist_nodes.
