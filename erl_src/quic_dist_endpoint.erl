%% @doc Owns the UDP endpoint of one address family, and the identity that
%% this node shows on it.
%%
%% The endpoint is opened by `listen/4', or by the first dial of a node that
%% does not listen. Incoming connections are passed on to the acceptor
%% process that `net_kernel' has (see `quic_dist_carrier:gen_accept/2').
-module(quic_dist_endpoint).

-behaviour(gen_server).

-export([start_link/1, listen/4, attach/3, dial/2, close/1,
         listen_port/1, info/1, connected/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([open_error/0]).

-type family() :: quic_dist_opts:family().
-type open_error() :: inet:posix()
                    | quic_dist_opts:bad_option()
                    | {bad_option, Name :: atom()}
                    | {nif_not_loaded, Path :: file:filename(), string()}
                    | {identity, term()}
                    | no_cookie.

%% How often an open endpoint's identity is compared with what it was made from:
%% the bound on how long after erlang:set_cookie/1, or after a file was replaced,
%% an incoming connection may still be judged by the old one.
-define(COOKIE_CHECK_MS, 1000).

%% An endpoint that has failed is opened again at once, but for one that has
%% failed less than this ago: who knows how to make it fail costs the node its
%% connections each time, and no more than that.
-define(REOPEN_MS, 500).

-record(state, {family :: family(),
                mode = closed :: closed | dialing | listening,
                endpoint :: undefined | quic_dist_nif:endpoint(),
                ip :: undefined | inet:ip_address(),
                port = 0 :: inet:port_number(),
                %% when the endpoint failed last, in monotonic milliseconds
                failed :: undefined | integer(),
                %% the name we listen as, before node() says it
                node :: undefined | node(),
                identity :: undefined | quic_dist_nif:identity(),
                %% how it was made
                trust :: undefined | quic_dist_trust:trust(),
                %% those of other nodes' cookies
                cookies = quic_dist_cookies:new() :: quic_dist_cookies:cookies(),
                %% a hash of what it was made from
                made_from :: undefined | non_neg_integer(),
                %% the same of what the endpoint was told of others' cookies
                others_from :: undefined | non_neg_integer(),
                %% the last question of the endpoint's about these
                asked = 0 :: non_neg_integer(),
                acceptor :: undefined | {pid(), reference()},
                %% incoming connections that no acceptor has taken yet, newest
                %% first; the engine's max_connections bounds them
                waiting = [] :: [{quic_dist_nif:connection(),
                                  quic_dist_nif:peer()}]}).

%%% API

%% @doc Starts the server of a family. It opens nothing yet.
-spec start_link(family()) -> gen_server:start_ret().
start_link(Family) ->
    gen_server:start_link({local, name(Family)}, ?MODULE, Family, []).

%% @doc Opens the endpoint on the first free port of a range, for `Node'.
-spec listen(family(), node(), inet:ip_address(),
             {inet:port_number(), inet:port_number()}) ->
          {ok, inet:port_number()} | {error, open_error()}.
listen(Family, Node, Ip, Ports) ->
    gen_server:call(name(Family), {listen, Node, Ip, Ports}, infinity).

%% @doc Makes the caller the process that gets incoming connections, as
%% `{quic_dist_accept, Conn, Peer}'. If this server has been restarted since
%% `listen/4', the endpoint is opened again where it was.
-spec attach(family(), inet:ip_address(), inet:port_number()) ->
          {ok, Server :: pid()} | {error, open_error()}.
attach(Family, Ip, Port) ->
    gen_server:call(name(Family), {attach, self(), Ip, Port}, infinity).

%% @doc The endpoint to dial a node with, its identity made from the present
%% cookie; and another identity, where erlang:set_cookie/2 gave another cookie for
%% that node: it is of another cluster.
-spec dial(family(), node()) ->
          {ok, quic_dist_nif:endpoint(), quic_dist_nif:identity() | nil}
        | {error, open_error()}.
dial(Family, Node) ->
    gen_server:call(name(Family), {dial, Node}, infinity).

%% @doc Closes the endpoint and its connections.
-spec close(family()) -> ok.
close(Family) ->
    %% net_kernel also calls this while everything is going down.
    try
        gen_server:call(name(Family), close, infinity)
    catch
        exit:_ -> ok
    end.

%% @doc The port on which this node listens in a family.
-spec listen_port(family()) -> {ok, inet:port_number()} | none.
listen_port(Family) ->
    try
        gen_server:call(name(Family), listen_port, infinity)
    catch
        exit:{noproc, _} -> none
    end.

%% @doc The calling controller's connection leads to a node that is up.
-spec connected(family(), node(), quic_dist_nif:connection()) -> ok.
connected(Family, Node, Conn) ->
    ok = quic_dist_nodes:enter(Family, Node, Conn),
    gen_server:cast(name(Family), {connected, self()}).

%% @doc What is known of the endpoint of a family; empty when it is not open.
-spec info(family()) -> [map()].
info(Family) ->
    try gen_server:call(name(Family), endpoint, infinity) of
        {ok, Endpoint, Mode} ->
            [(quic_dist_nif:endpoint_info(Endpoint))#{family => Family,
                                                      mode => Mode}];
        closed ->
            []
    catch
        exit:{noproc, _} -> []
    end.

%%% gen_server

%% @private
-spec init(family()) -> {ok, #state{}}.
init(Family) ->
    %% terminate/2 closes the endpoint: its thread ends before this process.
    process_flag(trap_exit, true),
    ok = quic_dist_nodes:new(Family),
    {ok, #state{family = Family}}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) ->
          {reply, term(), #state{}}.
handle_call({listen, Node, Ip, Ports}, _From, State) ->
    Closed = shut(State),
    case open(listening, Ip, Ports, Closed#state{node = Node}) of
        {ok, NewState} -> {reply, {ok, NewState#state.port}, NewState};
        {error, _} = Error -> {reply, Error, Closed}
    end;
handle_call({attach, Pid, _Ip, Port}, _From,
            #state{mode = listening, port = Port} = State) ->
    {reply, {ok, self()}, set_acceptor(Pid, State)};
handle_call({attach, Pid, Ip, Port}, _From, State) ->
    %% A restarted server has forgotten that it listened.
    Closed = shut(State),
    case open(listening, Ip, {Port, Port}, Closed) of
        {ok, NewState} -> {reply, {ok, self()}, set_acceptor(Pid, NewState)};
        {error, _} = Error -> {reply, Error, Closed}
    end;
handle_call({dial, Node}, _From, #state{mode = closed, family = Family} = State) ->
    {ok, Any} = quic_dist_opts:interface(Family, undefined),
    case open(dialing, Any, {0, 0}, State) of
        {ok, NewState} -> dial_as(Node, NewState);
        {error, _} = Error -> {reply, Error, State}
    end;
handle_call({dial, _Node}, _From, #state{endpoint = undefined} = State) ->
    %% It has failed, and is soon open again.
    {reply, {error, enetdown}, State};
handle_call({dial, Node}, _From, State) ->
    dial_as(Node, renew_others(renew_identity(State)));
handle_call(close, _From, State) ->
    {reply, ok, shut(State)};
handle_call(listen_port, _From, #state{mode = listening, port = Port} = State) ->
    {reply, {ok, Port}, State};
handle_call(listen_port, _From, State) ->
    {reply, none, State};
handle_call(endpoint, _From, #state{endpoint = undefined} = State) ->
    {reply, closed, State};
handle_call(endpoint, _From, #state{endpoint = Endpoint, mode = Mode} = State) ->
    {reply, {ok, Endpoint, Mode}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({connected, Controller}, State) ->
    _ = erlang:monitor(process, Controller),
    {noreply, State};
handle_cast(_Unexpected, State) ->
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) ->
          {noreply, #state{}} | {stop, term(), #state{}}.
handle_info({quic_dist_incoming, Endpoint, Conn, Peer},
            #state{endpoint = Endpoint} = State) ->
    {noreply, incoming(Conn, Peer, State)};
handle_info({quic_dist_incoming, _Closed, Conn, _Peer}, State) ->
    ok = quic_dist_nif:close(Conn, <<"endpoint closed">>),
    {noreply, State};
handle_info({quic_dist_refused, Endpoint, Peer, Reason}, State) ->
    quic_dist_log:refused(Peer, Reason),
    case State of
        #state{endpoint = Endpoint} ->
            {noreply, renew_others(renew_identity(State))};
        _ -> {noreply, State}
    end;
handle_info({quic_dist_endpoint_down, Endpoint, Text},
            #state{endpoint = Endpoint} = State) ->
    quic_dist_log:log(critical, "quic_dist: the event thread has ended, and "
                      "with it all connections: ~ts", [Text]),
    {noreply, failed(State)};
handle_info(reopen, State) ->
    {noreply, reopen(State)};
handle_info({quic_dist_log, Level, Text}, State) ->
    quic_dist_log:engine(Level, Text),
    {noreply, State};
handle_info(forget, State) ->
    true = erlang:garbage_collect(),
    {noreply, State};
handle_info({check_cookie, Endpoint}, #state{endpoint = Endpoint} = State) ->
    check_cookie_later(Endpoint),
    {noreply, renew_others(renew_identity(State))};
handle_info({quic_dist_unknown_cookie, Endpoint, Question},
            #state{endpoint = Endpoint} = State) ->
    %% It may have been set a moment ago.
    {noreply, tell_others(renew_identity(State#state{asked = Question}))};
handle_info({other_cookies, Endpoint}, #state{endpoint = Endpoint} = State) ->
    {noreply, tell_others(State)};
handle_info({'DOWN', Monitor, process, Pid, _},
            #state{acceptor = {Pid, Monitor}} = State) ->
    {noreply, State#state{acceptor = undefined}};
handle_info({'DOWN', _, process, Controller, _},
            #state{family = Family} = State) ->
    ok = quic_dist_nodes:leave(Family, Controller),
    {noreply, State};
handle_info(_Unexpected, State) ->
    {noreply, State}.

%% @private
-spec terminate(term(), #state{}) -> ok.
terminate(_Reason, State) ->
    _ = shut(State),
    ok.

%%% The endpoint

open(Mode, Ip, Ports, State) ->
    case prepare(State) of
        {ok, Limits, NewState} ->
            bind(Ports, Limits#{ip => Ip}, NewState#state{mode = Mode});
        {error, _} = Error ->
            Error
    end.

prepare(State) ->
    case quic_dist_nif:load() of
        ok ->
            case quic_dist_opts:limits() of
                {ok, Limits} ->
                    case make_identity(State) of
                        {ok, NewState} -> {ok, Limits, NewState};
                        {error, _} = Error -> Error
                    end;
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            Error
    end.

bind({First, Last}, _Opts, _State) when First > Last ->
    {error, eaddrinuse};
bind({First, Last}, Opts, #state{identity = Identity} = State) ->
    case quic_dist_nif:endpoint_open(self(), Identity, Opts#{port => First}) of
        {ok, Endpoint, Port} ->
            check_cookie_later(Endpoint),
            self() ! {other_cookies, Endpoint},
            {ok, State#state{endpoint = Endpoint, ip = maps:get(ip, Opts),
                             port = Port, asked = 0}};
        {error, eaddrinuse} ->
            bind({First + 1, Last}, Opts, State);
        {error, _} = Error ->
            Error
    end.

shut(#state{endpoint = undefined} = State) ->
    State#state{mode = closed};
shut(#state{endpoint = Endpoint} = State) ->
    ok = quic_dist_nif:endpoint_close(Endpoint),
    State#state{mode = closed, endpoint = undefined, port = 0, waiting = []}.

%% The thread has ended; what it held is freed, the port among it. EPMD goes on
%% leading to that port, and the acceptor is still there.
failed(#state{mode = Mode, port = Port, failed = Before} = State) ->
    Now = erlang:monotonic_time(millisecond),
    Shut = shut(State),
    Failed = Shut#state{mode = Mode, port = Port, failed = Now},
    case is_integer(Before) andalso Now - Before < ?REOPEN_MS of
        true -> reopen_later(Failed);
        false -> reopen(Failed)
    end.

reopen_later(State) ->
    _ = erlang:send_after(?REOPEN_MS, self(), reopen),
    State.

%% Opens the endpoint where it was. It may have been closed or opened meanwhile.
reopen(#state{mode = Mode, endpoint = undefined, ip = Ip, port = Port} = State)
  when Mode =/= closed ->
    case open(Mode, Ip, {Port, Port}, State) of
        {ok, Open} ->
            quic_dist_log:log(notice, "quic_dist: listening on ~ts again",
                              [quic_dist_log:peer({Ip, Port})]),
            Open;
        {error, Reason} ->
            quic_dist_log:log(error, "quic_dist: cannot listen on ~ts again: "
                              "~ts", [quic_dist_log:peer({Ip, Port}),
                                      quic_dist_log:reason(Reason)]),
            reopen_later(State)
    end;
reopen(State) ->
    State.

%%% Incoming connections

incoming(Conn, Peer, #state{mode = listening,
                            acceptor = {Pid, _}} = State) ->
    Pid ! {quic_dist_accept, Conn, Peer},
    State;
incoming(Conn, Peer, #state{mode = listening, waiting = Waiting} = State) ->
    State#state{waiting = [{Conn, Peer} | Waiting]};
incoming(Conn, _Peer, State) ->
    ok = quic_dist_nif:close(Conn, <<"this node does not listen">>),
    State.

set_acceptor(Pid, #state{acceptor = {_, OldMonitor}} = State) ->
    erlang:demonitor(OldMonitor, [flush]),
    set_acceptor(Pid, State#state{acceptor = undefined});
set_acceptor(Pid, #state{waiting = Waiting} = State) ->
    Monitor = erlang:monitor(process, Pid),
    lists:foreach(fun({Conn, Peer}) -> Pid ! {quic_dist_accept, Conn, Peer} end,
                  lists:reverse(Waiting)),
    State#state{acceptor = {Pid, Monitor}, waiting = []}.

%%% The identity

check_cookie_later(Endpoint) ->
    _ = erlang:send_after(?COOKIE_CHECK_MS, self(), {check_cookie, Endpoint}),
    ok.

renew_identity(#state{identity = Old, endpoint = Endpoint} = State) ->
    From = made_from(State),
    case make_identity(From, State) of
        {ok, #state{identity = Old} = NewState} ->
            NewState;
        {ok, #state{identity = New} = NewState} ->
            ok = quic_dist_nif:endpoint_set_identity(Endpoint, New),
            quic_dist_log:log(notice, "quic_dist: new connections use a new "
                              "identity", []),
            NewState;
        {error, no_cookie} ->
            State;
        {error, Reason} ->
            %% The old one still serves; once more when something changes.
            quic_dist_log:log(error, "quic_dist: the identity cannot be renewed "
                              "and stays as it is: ~ts",
                              [quic_dist_log:reason(Reason)]),
            State#state{made_from = From}
    end.

%% Leaves the identity as it is when nothing that it was made from has changed.
make_identity(State) ->
    make_identity(made_from(State), State).

make_identity(Before, #state{made_from = Before} = State) -> {ok, State};
make_identity(undefined, _State) -> {error, no_cookie};
make_identity(_Other, State) -> new_identity(State).

new_identity(State) ->
    case quic_dist_trust:read() of
        {ok, Named} ->
            %% Of which files it is made is known only now. They are looked at, and
            %% the cookie, before they are read: what changes while it is made,
            %% which takes 0.2 s, makes another one afterwards.
            From = made_from(State#state{trust = Named}),
            new_identity(From, State);
        {error, _} = Error ->
            Error
    end.

new_identity(From, #state{node = ListenNode} = State) ->
    case quic_dist_trust:read() of
        {ok, Trust} ->
            Cookie = fun() -> quic_dist_cookies:own(ListenNode) end,
            case quic_dist_trust:identity(Trust, Cookie, own_name(State)) of
                {ok, Identity, Warnings} ->
                    lists:foreach(
                      fun(Warning) ->
                              quic_dist_log:log(warning, "quic_dist: ~ts",
                                                [Warning])
                      end, Warnings),
                    %% Passwords go: a crash dump shows what a process has, garbage
                    %% as well.
                    self() ! forget,
                    {ok, State#state{identity = Identity, made_from = From,
                                     trust = quic_dist_trust:forget(Trust)}};
                {error, Reason} ->
                    self() ! forget,
                    {error, Reason}
            end;
        {error, _} = Error ->
            Error
    end.

%% A hash of it, too short to guess the cookie from: it would show in a crash
%% report.
made_from(#state{trust = undefined} = State) ->
    erlang:phash2({first, own_name(State)});
made_from(#state{trust = Trust, node = ListenNode} = State) ->
    case quic_dist_cookies:own(ListenNode) of
        {ok, Cookie} ->
            erlang:phash2({Cookie, own_name(State),
                           quic_dist_trust:stamp(Trust)});
        {error, no_cookie} ->
            undefined
    end.

own_name(#state{node = ListenNode}) ->
    case node() of
        nonode@nohost when ListenNode =:= undefined -> <<>>;
        nonode@nohost -> atom_to_binary(ListenNode);
        Node -> atom_to_binary(Node)
    end.

%% Other nodes' cookies matter where certificates are made of cookies.
dial_as(Node, #state{endpoint = Endpoint, trust = Trust,
                     cookies = Cookies} = State) ->
    Found = by_cookies(fun(Own, Name) ->
                               quic_dist_cookies:for_dialling(Node, Own, Trust,
                                                              Name, Cookies)
                       end, {ok, nil, Cookies}, State),
    case Found of
        {ok, Identity, NewCookies} ->
            {reply, {ok, Endpoint, Identity}, State#state{cookies = NewCookies}};
        {error, _} = Error ->
            {reply, Error, State}
    end.

%% What is made of the own cookie and the own name; `None' where certificates are
%% not made of cookies, or there is no cookie (any more).
by_cookies(Make, None, #state{trust = #{by := cookie}, node = ListenNode} = State) ->
    case quic_dist_cookies:own(ListenNode) of
        {ok, Own} -> Make(Own, own_name(State));
        {error, no_cookie} -> None
    end;
by_cookies(_Make, None, _State) ->
    None.

%% Tells the endpoint at once who may not dial by the own cookie, if that has
%% changed, and makes what others may dial by afterwards.
renew_others(#state{others_from = Before, endpoint = Endpoint} = State) ->
    case others_from(State) of
        {Before, NewState} ->
            NewState;
        {From, NewState} ->
            ok = quic_dist_nif:endpoint_set_others(Endpoint, known(NewState), 0),
            self() ! {other_cookies, Endpoint},
            NewState#state{others_from = From}
    end.

others_from(#state{trust = #{by := cookie}, cookies = Cookies,
                   others_from = Before} = State) ->
    {Hash, Found} = by_cookies(fun(Own, Name) ->
                                       quic_dist_cookies:hash(Own, Name, Cookies)
                               end, {Before, Cookies}, State),
    {Hash, State#state{cookies = Found}};
others_from(State) ->
    {undefined, State}.

%% One identity is made at a time, so that others who ask something of this
%% server wait for one at most. Who is held waits for all: his may be the last.
tell_others(State) ->
    %% What is set from here on makes another hash.
    {From, #state{endpoint = Endpoint, asked = Asked} = NewState} =
        others_from(State),
    {Step, Others, Told} = others(NewState#state{others_from = From}),
    Answered = case Step of
                   all ->
                       Asked;
                   more ->
                       self() ! {other_cookies, Endpoint},
                       0
               end,
    ok = quic_dist_nif:endpoint_set_others(Endpoint, Others, Answered),
    Told.

known(#state{cookies = Cookies} = State) ->
    by_cookies(fun(Own, Name) -> quic_dist_cookies:known(Own, Name, Cookies) end,
               [], State).

others(#state{trust = Trust, cookies = Cookies} = State) ->
    {Step, Others, NewCookies} =
        by_cookies(fun(Own, Name) ->
                           quic_dist_cookies:others(Own, Trust, Name, Cookies)
                   end, {all, [], Cookies}, State),
    {Step, Others, State#state{cookies = NewCookies}}.

name(inet) -> quic_dist_endpoint;
name(inet6) -> quic6_dist_endpoint.
