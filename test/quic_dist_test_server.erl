%% A gen_server for the suites: something to call, cast, monitor and stop on another node.
-module(quic_dist_test_server).
-behaviour(gen_server).

-export([start/1, init/1, handle_call/3, handle_cast/2, handle_info/2]).

-spec start(atom()) -> {ok, pid()}.
start(Name) -> gen_server:start({local, Name}, ?MODULE, [], []).

-spec init([]) -> {ok, [term()]}.
init([]) -> {ok, []}.

-spec handle_call(term(), gen_server:from(), [term()]) -> {reply, term(), [term()]} | {noreply, [term()]} | {stop, normal, term(), [term()]}.
handle_call({echo, Term}, _From, State) -> {reply, Term, State};
handle_call(casts, _From, State) -> {reply, lists:reverse(State), []};
handle_call(never, _From, State) -> {noreply, State};
handle_call(stop_with_reply, _From, State) -> {stop, normal, replied, State}.

-spec handle_cast(term(), [term()]) -> {noreply, [term()]}.
handle_cast(Term, State) -> {noreply, [Term | State]}.

-spec handle_info(term(), [term()]) -> {noreply, [term()]}.
handle_info(Term, State) -> {noreply, [Term | State]}.
