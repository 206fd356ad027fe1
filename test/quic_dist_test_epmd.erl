%% An epmd module for nodes under test: it registers with the stock EPMD, but a test can say that a node is to be dialled at another
%% port, where a relay of its own listens. Used with `-epmd_module quic_dist_test_epmd`.
-module(quic_dist_test_epmd).

-export([route/1]).
-export([start_link/0, register_node/2, register_node/3, port_please/2, port_please/3, listen_port_please/2, address_please/3, names/1]).

%% The part of a node's name before the @ => the port to dial in place of the one that EPMD knows, or without asking that.
-spec route(#{string() => inet:port_number() | {only, inet:port_number()}}) -> ok.
route(Routes) -> application:set_env(kernel, ?MODULE, Routes).

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() -> erl_epmd:start_link().

-spec register_node(string(), inet:port_number()) -> term().
register_node(Name, Port) -> erl_epmd:register_node(Name, Port).

-spec register_node(string(), inet:port_number(), atom()) -> term().
register_node(Name, Port, Driver) -> erl_epmd:register_node(Name, Port, Driver).

-spec port_please(string(), term()) -> term().
port_please(Name, Host) -> port_please(Name, Host, infinity).

-spec port_please(string(), term(), timeout()) -> term().
port_please(Name, Host, Timeout) ->
    Routes = application:get_env(kernel, ?MODULE, #{}),
    case Routes of
        #{Name := {only, Port}} -> {port, Port, 6};
        #{} ->
            case {erl_epmd:port_please(Name, Host, Timeout), Routes} of
                {{port, _, Version}, #{Name := Port}} -> {port, Port, Version};
                {Answer, _} -> Answer
            end
    end.

-spec listen_port_please(term(), term()) -> {ok, inet:port_number()}.
listen_port_please(Name, Host) -> erl_epmd:listen_port_please(Name, Host).

-spec address_please(string(), term(), atom()) -> term().
address_please(Name, Host, Family) -> erl_epmd:address_please(Name, Host, Family).

-spec names(term()) -> term().
names(Host) -> erl_epmd:names(Host).
