%% The options of trust, in all places where they may stand, and of either name; and what the rules of verification come to.
-module(trust_options_SUITE).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([options_of_erlang_quic/1, options_of_ssl/1, flags/1, flags_of_ssl/1, after_boot/1, bad_options/1,
         revoked/1, depth/1, lists_of_revoked/1]).

-import(quic_dist_test_trust, [ca/1, leaf/2, file/2, files/3, start_certified/3, start_with/4, quic_dist_env/1, quoted/1, ssl_options/1,
                               write_term/3, connects/1, refused/2, renewed_identity/1, has_logged/2,
                               said/2]).

-define(LIB, quic_dist_test_lib).
-define(CA, quic_dist_test_ca).
-define(ENV, fun quic_dist_test_trust:quic_dist_env/1).

suite() -> [{timetrap, {seconds, 120}}].

all() -> [options_of_erlang_quic, options_of_ssl, flags, flags_of_ssl, after_boot, bad_options, revoked, depth, lists_of_revoked].

init_per_suite(Config) -> quic_dist_test_trust:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{C, "it is about QUIC's certificates"} || C <- all()], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%%% Where options stand

%% What sys.config has for erlang_quic. What has no meaning is said once.
options_of_erlang_quic(Config) ->
    Sys = fun(Port) ->
        fun(#{cert := Cert, key := Key, ca := Ca, name := Name}) ->
            Dist = [{cert_file, Cert}, {key_file, list_to_binary(Key)}, {cacert_file, Ca}, {verify, verify_peer},
                    {discovery_module, quic_discovery_static}, {nodes, []}],
            ["-config", write_term(Config, Name ++ ".config", [{quic, [{dist, Dist}, {dist_port, Port}]}]), "-quic_dist_discovery_module", "x"]
        end
    end,
    Ports = [?LIB:free_port() || _ <- [a, b]],
    Nodes = [hd(start_certified(Config, [ca(Config)], Sys(Port))) || Port <- Ports],
    [{ok, Port} = ?LIB:call(Node, quic_dist_endpoint, listen_port, [inet]) || {Node, Port} <- lists:zip(Nodes, Ports)],
    [said(Node, "without a meaning here .*: -quic_dist_discovery_module, discovery_module, nodes\n") || Node <- Nodes],
    connects(Nodes).

%% What an inet_tls node has.
options_of_ssl(Config) ->
    connects(start_certified(Config, [ca(Config), ca(Config)], fun(#{name := Name} = Files) ->
        [Server, Client] = [ssl_options(Files), ssl_options(Files)],
        Term = [{server, [{fail_if_no_peer_cert, true}, {secure_renegotiate, true} | Server]}, {client, [{versions, ['tlsv1.3']} | Client]}],
        ["-ssl_dist_optfile", write_term(Config, Name ++ ".opt", Term)]
    end)).

flags(Config) ->
    Ports = [P1, P2] = [?LIB:free_port() || _ <- [a, b]],
    [A] = start_certified(Config, [ca(Config)], fun(Files) -> flags_of(Files) ++ ["-quic_dist_port", integer_to_list(P1)] end),
    [B] = start_certified(Config, [ca(Config)], fun(Files) ->
        roles("-quic_dist_opt", Files) ++ ["-quic_dist_port", integer_to_list(P1), "-kernel", "inet_dist_listen_min", integer_to_list(P2)]
    end),
    Ports = [begin {ok, Port} = ?LIB:call(N, quic_dist_endpoint, listen_port, [inet]), Port end || N <- [A, B]],
    connects([A, B]),
    false = has_logged(A, "without a meaning").

%% Of a node that was on inet_tls; and from a file of arguments (vm.args).
flags_of_ssl(Config) ->
    connects([hd(start_certified(Config, [ca(Config)], ToArgs))
              || ToArgs <- [fun(Files) -> roles("-ssl_dist_opt", Files) end,
                            fun(#{name := Name} = Files) ->
                                Lines = [[Arg, case Arg of "-" ++ _ -> " "; _ -> "\n" end] || Arg <- flags_of(Files)],
                                ["-args_file", ?CA:write(file(Config, Name ++ ".args"), Lines)]
                            end]]).

flags_of(#{cert := Cert, key := Key, ca := Ca}) -> ["-quic_dist_cert", Cert, "-quic_dist_key", Key, "-quic_dist_cacert", Ca].

roles(Flag, #{cert := Cert, key := Key, ca := Ca}) ->
    lists:append([[Flag, Role ++ "certfile", Cert, Role ++ "keyfile", Key, Role ++ "cacertfile", Ca, Role ++ "verify", "verify_peer",
                   Role ++ "secure_renegotiate", "true"] || Role <- ["server_", "client_"]]).

%% The distribution is started when the node has long been up.
after_boot(Config) ->
    [B] = start_certified(Config, [ca(Config)], ?ENV),
    Name = ?LIB:name("late"),
    A = ?LIB:start(#{naming => none, tag => "late", args => quic_dist_env(files(Config, Name, leaf(Config, Name)))}),
    false = ?LIB:call(A, erlang, is_alive, []),
    {ok, _} = ?LIB:call(A, net_kernel, start, [[list_to_atom(Name), longnames]]),
    connects([A, B]).

%% The node does not start, and says which option it is.
bad_options(Config) ->
    #{cert := Cert, key := Key, ca := Ca} = files(Config, "bad@127.0.0.1", leaf(Config, "bad@127.0.0.1")),
    Encrypted = ?CA:write(file(Config, "bad.enc"), ?CA:key_pem(leaf(Config, "bad@127.0.0.1"), "right")),
    Lines = [
        {["-quic_dist_cert", Cert, "-quic_dist_key", Key], "{bad_option,cacertfile,"},
        {["-quic_dist_cacert", Ca], "{bad_option,certfile,"},
        {["-quic_dist_cert", Cert, "-quic_dist_key", "/nowhere.pem", "-quic_dist_cacert", Ca], "/nowhere.pem: No such file"},
        {["-quic_dist_cert", Cert, "-quic_dist_key", Encrypted, "-quic_dist_cacert", Ca], "password"},
        {["-quic_dist_cert", Cert, "-quic_dist_key", Ca, "-quic_dist_cacert", Ca], "no private key in it"},
        {["-quic_dist_port", "many"], "{bad_option,quic_dist_port,"},
        {["-quic_dist_auth_callback", "m:f"], "{bad_option,auth_callback,"},
        {of_quic(Config, psks, [{<<"a">>, <<"b">>}]), "{bad_option,psks,"},
        {of_quic(Config, auth_callback, {m, f}), "{bad_option,auth_callback,"},
        {of_quic(Config, external_psk, <<"b">>), "{bad_option,external_psk,"},
        {["-quic_dist_verify", "verify_maybe"], "{bad_option,verify,"},
        {["-quic_dist_optfile", "/nowhere.opt"], "/nowhere.opt: enoent"},
        {["-quic_dist_opt", "server_verify_fun", "x"], "{bad_option,server,"}],
    Booted = [{Line, ?LIB:boot(#{tag => "bad", args => Args})} || {Args, Line} <- Lines],
    [] = [{Line, Result} || {Line, Result} <- Booted, not failed_with(Line, Result)],
    ok.

of_quic(Config, Name, Value) -> ["-config", write_term(Config, lists:concat([Name, ".config"]), [{quic, [{dist, [{Name, Value}]}]}])].

failed_with(Line, {error, {exit_status, _, Output}}) -> re:run(Output, Line) =/= nomatch;
failed_with(_, _) -> false.

%%% What is verified

revoked(Config) ->
    ok = ?LIB:not_at_midnight(30),
    [NameA, NameB, NameC] = [?LIB:name("r") || _ <- [1, 2, 3]],
    [LeafA, LeafB, LeafC] = [leaf(Config, N) || N <- [NameA, NameB, NameC]],
    Crl = ?CA:write(file(Config, "crl.pem"), ?CA:revoked(ca(Config), [LeafC])),
    Checked = fun(Files) -> quic_dist_env(Files) ++ ["-quic_dist", "crlfile", quoted(Crl), "-quic_dist", "crl_check", "true"] end,
    A = start_with(Config, NameA, LeafA, Checked),
    B = start_with(Config, NameB, LeafB, Checked),
    C = start_with(Config, NameC, LeafC, ?ENV),
    connects([A, B]),
    refused(C, A),
    refused(A, C),
    said(A, "certificate \\(" ++ NameC ++ "\\): certificate revoked"),
    ok = ?LIB:disconnect(A, B),
    %% B has a session with A.
    [false, true] = [begin
         ok = ?LIB:connect(B, A),
         pong = ?LIB:call(B, net_adm, ping, [?LIB:node(A)]),
         #{resumed := Resumed} = ?LIB:connection(B, A),
         ok = ?LIB:disconnect(B, A),
         Resumed
     end || _ <- [1, 2]],
    %% The list is looked at again when it is written again, and what was verified before does not count any more.
    ?CA:write(Crl, ?CA:revoked(ca(Config), [LeafC, LeafB])),
    ok = renewed_identity([A]),
    refused(B, A),
    said(A, "certificate \\(" ++ NameB ++ "\\): certificate revoked").

%% A chain is as long as it may be.
depth(Config) ->
    Middle = ?CA:authority("middle", ca(Config)),
    [B] = start_certified(Config, [Middle], ?ENV),
    [Short, Long] = [hd(start_certified(Config, [ca(Config)], fun(Files) -> quic_dist_env(Files) ++ ["-quic_dist", "depth", Depth] end))
                     || Depth <- ["0", "1"]],
    connects([Long, B]),
    refused(B, Short),
    refused(Short, B),
    said(Short, "refused a connection from .*the peer's certificate .*(unable to get local issuer certificate|certificate chain too long)").

%% B has the certificate of an authority between, C one that is revoked. What a node with these lists and this rule makes of them.
lists_of_revoked(Config) ->
    Middle = ?CA:authority("middle of lists", ca(Config)),
    [NameB, NameC] = [?LIB:name("r") || _ <- [1, 2]],
    LeafC = ?CA:leaf(Middle, #{names => [{node, NameC}]}),
    B = start_with(Config, NameB, ?CA:leaf(Middle, #{names => [{node, NameB}]}), ?ENV),
    C = start_with(Config, NameC, LeafC, ?ENV),
    Root = fun(Certificates) -> ?CA:revoked(ca(Config), Certificates) end,
    OfMiddle = ?CA:revoked(Middle, [LeafC]),
    [begin
         ct:log("~s ~p", [Check, Expected]),
         Name = ?LIB:name("r"),
         Crl = ?CA:write(file(Config, Name ++ ".crl"), Lists),
         A = start_with(Config, Name, leaf(Config, Name), fun(Files) ->
             quic_dist_env(Files) ++ ["-quic_dist", "crlfile", quoted(Crl), "-quic_dist", "crl_check", Check]
         end),
         [case Line of
              let_in ->
                  connects([X, A]),
                  ok = ?LIB:disconnect(X, A);
              _ ->
                  refused(X, A),
                  said(A, "refused a connection from .*" ++ Line),
                  refused(A, X)
          end || {X, Line} <- lists:zip([B, C], Expected)],
         ?LIB:kill(A)
     end || {Lists, Check, Expected} <- [
         {[Root([]), OfMiddle], "true", [let_in, "certificate revoked"]},
         {[Root([Middle]), OfMiddle], "true", ["certificate revoked", "certificate revoked"]},
         {[Root([Middle]), OfMiddle], "peer", [let_in, "certificate revoked"]},
         {[Root([Middle]), OfMiddle], "false", [let_in, let_in]},
         {[Root([])], "peer", ["unable to get certificate CRL", "unable to get certificate CRL"]},
         {[OfMiddle], "true", ["unable to get certificate CRL", "(certificate revoked|unable to get certificate CRL)"]},
         {[Root([]), ?CA:revoked(Middle, [], -60)], "true", ["CRL has expired", "CRL has expired"]}]],
    ok.
