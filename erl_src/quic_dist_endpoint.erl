%% @doc Owns the UDP endpoint of one address family, and the identity that
%% this node shows on it.
%%
%% The endpoint is opened by `listen/4', or by the first dial of a node that
%% does not listen. Incoming connections are passed on to the acceptor
%% process that `net_kernel' has (see `quic_dist_carrier:gen_accept/2').
-module(quic_dist_endpoint).

-behaviour(gen_server).

-export([start_link/1, listen/4, attach/3, dial/1, close/1,
         listen_port/1, info/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([open_error/0]).

-type family() :: quic_dist_opts:family().
-type open_error() :: inet:posix()
                    | quic_dist_opts:bad_option()
                    | {bad_option, Name :: atom()}
                    | {nif_not_loaded, Path :: file:filename(), string()}
                    | {identity, term()}
                    | no_cookie.

%% How often an open endpoint's identity is compared with the node's cookie:
%% the bound on how long after erlang:set_cookie/1 an incoming connection may
%% still be judged by the old one.
-define(COOKIE_CHECK_MS, 1000).

-record(state, {family :: family(),
                mode = closed :: closed | dialing | listening,
                endpoint :: undefined | quic_dist_nif:endpoint(),
                port = 0 :: inet:port_number(),
                %% the name we listen as, before node() says it
                node :: undefined | node(),
                identity :: undefined | quic_dist_nif:identity(),
                %% a hash of what the identity was made from, too short to
                %% guess the cookie from: it would show in a crash report
                made_from :: undefined | non_neg_integer(),
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

%% @doc The endpoint to dial with, its identity made from the present cookie.
-spec dial(family()) -> {ok, quic_dist_nif:endpoint()} | {error, open_error()}.
dial(Family) ->
    gen_server:call(name(Family), dial, infinity).

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
handle_call(dial, _From, #state{mode = closed, family = Family} = State) ->
    {ok, Any} = quic_dist_opts:interface(Family, undefined),
    case open(dialing, Any, {0, 0}, State) of
        {ok, NewState} -> {reply, {ok, NewState#state.endpoint}, NewState};
        {error, _} = Error -> {reply, Error, State}
    end;
handle_call(dial, _From, State) ->
    NewState = renew_identity(State),
    {reply, {ok, NewState#state.endpoint}, NewState};
handle_call(close, _From, State) ->
    {reply, ok, shut(State)};
handle_call(listen_port, _From, #state{mode = listening, port = Port} = State) ->
    {reply, {ok, Port}, State};
handle_call(listen_port, _From, State) ->
    {reply, none, State};
handle_call(endpoint, _From, #state{mode = closed} = State) ->
    {reply, closed, State};
handle_call(endpoint, _From, #state{endpoint = Endpoint, mode = Mode} = State) ->
    {reply, {ok, Endpoint, Mode}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
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
        #state{endpoint = Endpoint} -> {noreply, renew_identity(State)};
        _ -> {noreply, State}
    end;
handle_info({quic_dist_endpoint_down, Endpoint, Text},
            #state{endpoint = Endpoint} = State) ->
    %% The supervisor starts another server; the acceptor attaches to it, and
    %% the endpoint is opened again where it was.
    quic_dist_log:log(error, "quic_dist: the event thread has ended: ~ts",
                      [Text]),
    {stop, {event_thread, Text}, State};
handle_info({quic_dist_log, Level, Text}, State) ->
    quic_dist_log:engine(Level, Text),
    {noreply, State};
handle_info({check_cookie, Endpoint}, #state{endpoint = Endpoint} = State) ->
    check_cookie_later(Endpoint),
    {noreply, renew_identity(State)};
handle_info({'DOWN', Monitor, process, Pid, _},
            #state{acceptor = {Pid, Monitor}} = State) ->
    {noreply, State#state{acceptor = undefined}};
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
            {ok, State#state{endpoint = Endpoint, port = Port}};
        {error, eaddrinuse} ->
            bind({First + 1, Last}, Opts, State);
        {error, _} = Error ->
            Error
    end.

shut(#state{endpoint = undefined} = State) ->
    State;
shut(#state{endpoint = Endpoint} = State) ->
    ok = quic_dist_nif:endpoint_close(Endpoint),
    State#state{mode = closed, endpoint = undefined, port = 0, waiting = []}.

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

renew_identity(#state{identity = Old} = State) ->
    case make_identity(State) of
        {ok, #state{identity = Old} = NewState} ->
            NewState;
        {ok, #state{identity = New, endpoint = Endpoint} = NewState} ->
            ok = quic_dist_nif:endpoint_set_identity(Endpoint, New),
            NewState;
        {error, no_cookie} ->
            State;
        {error, Reason} ->
            quic_dist_log:log(error, "quic_dist: cannot use the new cookie: ~ts",
                              [quic_dist_log:reason(Reason)]),
            State
    end.

%% Leaves the identity as it is when nothing that it was made from has changed.
make_identity(#state{node = ListenNode, made_from = Before} = State) ->
    Name = case node() of
               nonode@nohost when ListenNode =:= undefined -> <<>>;
               nonode@nohost -> atom_to_binary(ListenNode);
               Node -> atom_to_binary(Node)
           end,
    case cookie(ListenNode) of
        {ok, Cookie} ->
            case erlang:phash2({Cookie, Name}) of
                Before -> {ok, State};
                Now -> make_identity(Cookie, Name, State#state{made_from = Now})
            end;
        {error, _} = Error ->
            Error
    end.

make_identity(Cookie, Name, State) ->
    Cookie =:= <<"nocookie">> andalso
        quic_dist_log:log(warning, "quic_dist: the cookie is 'nocookie': "
                          "anybody who reaches this node can join it", []),
    case quic_dist_nif:identity_new(Cookie, Name) of
        {ok, Identity} -> {ok, State#state{identity = Identity}};
        {error, Reason} -> {error, {identity, Reason}}
    end.

%% Asked for by name, because net_kernel gives the node its own entry of
%% `-setcookie Node Cookie' only after listen. auth is gone before us when the
%% distribution stops.
cookie(ListenNode) ->
    try auth:get_cookie(case ListenNode of
                            undefined -> node();
                            _ -> ListenNode
                        end) of
        nocookie ->
            case whereis(auth) of
                undefined -> {error, no_cookie};
                _ -> {ok, <<"nocookie">>}
            end;
        Cookie ->
            {ok, atom_to_binary(Cookie)}
    catch
        exit:_ -> {error, no_cookie}
    end.

name(inet) -> quic_dist_endpoint;
name(inet6) -> quic6_dist_endpoint.
