%% @doc The supervisor of one address family's endpoint server, started under
%% `net_sup' before `net_kernel' (see `quic_dist:childspecs/0').
-module(quic_dist_sup).

-behaviour(supervisor).

-export([childspec/1, start_link/1]).
-export([init/1]).

%% @doc How `net_sup' starts this supervisor.
-spec childspec(quic_dist_opts:family()) -> supervisor:child_spec().
childspec(Family) ->
    #{id => name(Family),
      start => {?MODULE, start_link, [Family]},
      restart => permanent,
      shutdown => infinity,
      type => supervisor,
      modules => [?MODULE]}.

%% @doc Starts the supervisor of a family.
-spec start_link(quic_dist_opts:family()) -> supervisor:startlink_ret().
start_link(Family) ->
    supervisor:start_link({local, name(Family)}, ?MODULE, Family).

%% @private
-spec init(quic_dist_opts:family()) ->
          {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(Family) ->
    _ = whereis(name(other(Family))) =:= undefined andalso say_passed_over(),
    %% net_sup itself tolerates no restart: a crash of the endpoint server is
    %% to cost the connections, not the node.
    {ok, {#{strategy => one_for_one, intensity => 5, period => 10},
          [#{id => quic_dist_endpoint,
             start => {quic_dist_endpoint, start_link, [Family]},
             restart => permanent,
             shutdown => 5000,
             type => worker,
             modules => [quic_dist_endpoint]}]}}.

say_passed_over() ->
    Names = quic_dist_of_quic:passed_over(),
    Names =:= [] orelse
        quic_dist_log:log(notice, "quic_dist: configured for erlang_quic and "
                          "without a meaning here (EPMD or -epmd_module tells "
                          "where nodes are): ~ts", [lists:join(", ", Names)]).

%% Both families may run in one node.
name(inet) -> quic_dist_sup;
name(inet6) -> quic6_dist_sup.

other(inet) -> inet6;
other(inet6) -> inet.
